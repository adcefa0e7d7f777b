"""One command: composing its cells, running them in a child process, and showing what became of them."""
