"""Tables as text: on the terminal, and as Markdown, CSV and LaTeX files."""
