"""Models: where they come from, how they are loaded, and the parts of them that methods work on."""
