"""Text of a README as HTML: CommonMark with tables, no raw HTML, links as they are seen from the page."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup


class Prose:
    """Renders the READMEs of the studies.

    Args:
        experiments: path from the page's folder to the folder of the studies; None: there is none that a
            reader of the page would have, and what links to other files is text.
    """

    def __init__(self, experiments: str | None) -> None:
        self._experiments = experiments
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

    def html(self, text: str, study: str) -> Markup:
        """Paragraphs, lists, code and tables of the README of ``study``."""
        return self._render(self._markdown.parse(text), study)

    def line(self, text: str, study: str) -> Markup:
        """The first paragraph, without being one."""
        first = text.strip().split("\n\n")[0]
        return self._render(self._markdown.parseInline(first), study)

    def _render(self, tokens: Sequence[Token], study: str) -> Markup:
        tokens = self._relinked(tokens, study)
        return Markup(self._markdown.renderer.render(tokens, self._markdown.options, {}))

    def _relinked(self, tokens: Sequence[Token], study: str) -> list[Token]:
        kept = []
        dropped = 0
        for token in tokens:
            if token.children is not None:
                token.children = self._relinked(token.children, study)
            if token.type == "link_open":
                target = self._target(str(token.attrs["href"]), study)
                dropped += target is None
                if target is None:
                    continue
                token.attrs["href"] = target
            if token.type == "link_close" and dropped:
                dropped -= 1
                continue
            kept.append(token)
        return kept

    def _target(self, link: str, study: str) -> str | None:
        """Where a link of a README leads from the page; links are never nested."""
        if ":" in link.partition("/")[0] or link.startswith("//"):
            return link
        if self._experiments is None or link.startswith("#"):
            return None
        return posixpath.normpath(posixpath.join(self._experiments, study, link))
