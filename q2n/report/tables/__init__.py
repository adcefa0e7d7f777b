"""Tables from records: selection, lines and columns, differences and their significance."""
