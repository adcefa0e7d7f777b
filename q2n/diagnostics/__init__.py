"""Diagnostics: measures of quantized layers for the record, which change nothing."""
