"""Launchers and sweepers: where the cells of a sweep run, and which of them."""
