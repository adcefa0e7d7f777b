"""Studies and published numbers, read from the folder ``experiments``."""
