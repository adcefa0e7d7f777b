"""README texts as HTML: CommonMark with tables, without raw HTML, with links relative to the page."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_STUDIES = "../experiments"
"""Folder of the studies, relative to the page."""


class Prose:
    """Renders the READMEs of the studies.

    Links to other files always assume the layout of a checkout, so that the page is the same for the same
    records in every folder.
    """

    def __init__(self) -> None:
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")

    def html(self, text: str, study: str) -> Markup:
        """HTML of a text from the README of ``study``: paragraphs, lists, code and tables."""
        return self._render(self._markdown.parse(text), study)

    def line(self, text: str, study: str) -> Markup:
        """HTML of the text's first paragraph, without the ``<p>`` element."""
        return self._render(self._markdown.parseInline(text.strip().split("\n\n")[0]), study)

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
        """Target of a README's link as seen from the page, or None for a link within the README."""
        if ":" in link.partition("/")[0] or link.startswith("//"):
            return link
        if link.startswith("#"):
            return None
        return posixpath.normpath(posixpath.join(_STUDIES, study, link))
