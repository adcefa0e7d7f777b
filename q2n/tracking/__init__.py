"""Experiment trackers: optional copies of the records' content."""
