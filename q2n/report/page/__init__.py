"""What the HTML page shows, prepared for its template: answer, lines of tables, cells, drawings, prose."""
