"""``python run.py [-m] [key=value ...]``: one cell, or a sweep of cells. See ``python run.py --help``."""

from q2n.cli import main

if __name__ == "__main__":
    main()
