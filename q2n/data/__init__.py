"""Calibration and evaluation text: its sources, its sampling and its tokens."""
