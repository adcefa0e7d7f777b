"""Experiment trackers: optional copies of what the records already hold."""
