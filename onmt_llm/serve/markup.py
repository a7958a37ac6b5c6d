"""Texts in segments that are translated, and what stays as it is between them: line breaks, and the tags of HTML."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape, unescape

_TAG_START = re.compile(r"<[a-zA-Z/!?]")
_TAG = re.compile(r"""<!--.*?-->|<[a-zA-Z/!?](?:[^'">]|"[^"]*"|'[^']*')*>""", re.DOTALL)
_NAME = re.compile(r"</?([a-zA-Z][^\s/>]*)")
_NO_TRANSLATION = re.compile(r"""\stranslate\s*=\s*["']?no\b""", re.IGNORECASE)
_RAW = frozenset({"script", "style", "textarea"})
"""Elements whose content has no tags."""
_NOT_TEXT = _RAW | {"code", "pre", "svg", "math"}
_VOID = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"]
)
"""Elements without an end."""


@dataclass(frozen=True)
class Document:
    """A text.

    Attributes:
        parts: Its pieces, in order.
        places: The places of those that are translated.
        is_html: Whether it has tags; then translations are escaped.
    """

    parts: Sequence[str]
    places: Sequence[int]
    is_html: bool = False

    @property
    def segments(self) -> list[str]:
        """The pieces that are translated, as plain text."""
        texts = [self.parts[place] for place in self.places]
        return [unescape(text) for text in texts] if self.is_html else texts

    def filled(self, translations: Sequence[str]) -> str:
        """The document with the translations of its segments."""
        parts = list(self.parts)
        for place, translation in zip(self.places, translations, strict=True):
            parts[place] = escape(translation, quote=False) if self.is_html else translation
        return "".join(parts)


def of_lines(text: str) -> Document:
    """A plain text, of which each line is a segment."""
    parts = re.split(r"(\r?\n)", text)
    return Document(parts, [place for place, part in enumerate(parts) if part.strip()])


def of_html(text: str) -> Document:
    """A text with tags: what stands between two tags is a segment, and the tags stay as they are.

    So a sentence with a tag inside is translated in pieces. The content of elements such as `<script>`, `<code>` and
    `<pre>`, and of those with `translate="no"`, is left alone.
    """
    parts: list[str] = []
    places: list[int] = []
    for piece, is_text in _pieces(text):
        if is_text and any(map(str.isalpha, unescape(piece))):
            places.append(len(parts))
        parts.append(piece)
    return Document(parts, places, is_html=True)


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of an HTML text, and whether each is text to be translated."""
    open_elements: list[tuple[str, bool]] = []  # with whether their content is translated
    open_names = Counter[str]()
    position = 0
    for tag in _tags(text):
        translated = not open_elements or open_elements[-1][1]
        yield text[position : tag.start()], translated
        yield tag[0], False
        position = tag.end()
        found = _NAME.match(tag[0])
        name = found[1].lower() if found else ""
        if tag[0].startswith("</"):
            while open_names[name]:  # with it end those inside that have no end of their own
                element, _ = open_elements.pop()
                open_names[element] -= 1
                if element == name:
                    break
        elif name and name not in _VOID and not tag[0].endswith("/>"):
            kept = name in _NOT_TEXT or _NO_TRANSLATION.search(tag[0])
            open_elements.append((name, translated and not kept))
            open_names[name] += 1
    yield text[position:], not open_elements or open_elements[-1][1]


def _tags(text: str) -> Iterator[re.Match[str]]:
    """The tags and comments; what follows a tag without an end is text."""
    position = 0
    while start := _TAG_START.search(text, position):
        tag = _TAG.match(text, start.start())
        if tag is None:
            return
        yield tag
        position = tag.end()
        name = _NAME.match(tag[0])
        if name and name[1].lower() in _RAW and not tag[0].startswith("</"):
            end = re.compile(f"</{re.escape(name[1])}", re.IGNORECASE).search(text, position)
            position = end.start() if end else len(text)
