"""The HTML page and the parts its template needs: answer, table lines, cells, drawings, prose."""
