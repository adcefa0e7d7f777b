"""Tables, figures and an HTML page from records.

:func:`print_report` prints to the terminal, ``python -m q2n.report`` writes files.
"""

from __future__ import annotations

from q2n.report.render.formats import print_report

__all__ = ["print_report"]
