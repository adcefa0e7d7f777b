"""Tables rendered from records: :func:`print_report` on the terminal, :func:`write_report` as files."""

from __future__ import annotations

from q2n.report.render import print_report, write_report

__all__ = ["print_report", "write_report"]
