"""Tables, figures and a page from records: on the terminal by :func:`print_report`, as files by
``python -m q2n.report``."""

from __future__ import annotations

from q2n.report.render.formats import print_report

__all__ = ["print_report"]
