"""Number formats: stored representations of a weight matrix, and their choices (bits, groups, clipping)."""
