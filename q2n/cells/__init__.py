"""Running of one cell, and errors that mean that memory ran out."""
