"""What a cell would take, and whether its parts fit each other, before anything is loaded."""
