"""Predicted cost of a cell, and checks that its parts fit each other, before anything is loaded."""
