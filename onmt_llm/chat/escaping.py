"""Escapes text of models and users for a Markdown view: it is shown literally, and no HTML or image is loaded.

Outside code, `&`, `<` and `>` become entities, so `<int>` and `</s>` are visible instead of vanishing as HTML tags.
Markdown images are disabled, because loading an image tells its server what the model wrote. Inside code spans and
fences Markdown shows text literally, so nothing is escaped there. In formulas `<` and `>` become the commands of TeX.
"""

from __future__ import annotations

import re

# a fence may be at any depth of a list, or directly after a bullet
_FENCE = re.compile(r"^\s*(?:(?:[-*+]|\d+[.)])\s+)?(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})")
# a code span ends where its paragraph, list item, heading or quotation ends
_BLOCK_END = re.compile(r"(\n(?=[ \t]*\n|[ \t]*(?:[-*+]|\d+[.)]|#{1,6}|>)[ \t]))")
_FORMULA = re.compile(r"(\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\))", re.DOTALL)
_TICKS = re.compile(r"`+")
_TICKS_OR_ESCAPED = re.compile(r"\\[\\`]|`+")


def escape_markdown(text: str) -> str:
    """Escape everything outside code; a code fence may be unfinished, as in a partial answer."""
    parts: list[str] = []
    prose: list[str] = []
    fence = ""
    for line in text.split("\n"):
        if fence:
            parts.append(line)
            fence = "" if _closes(line, fence) else fence
        elif match := _FENCE.match(line):
            if prose:
                parts.append(_escape_prose("\n".join(prose)))
            parts.append(line)
            prose, fence = [], match["fence"]
        else:
            prose.append(line)
    if prose:
        parts.append(_escape_prose("\n".join(prose)))
    return "\n".join(parts)


def _closes(line: str, fence: str) -> bool:
    mark = line.strip()
    return len(mark) >= len(fence) and set(mark) == {fence[0]}


def _escape_prose(text: str) -> str:
    return "".join(_escape_block(block) for block in _BLOCK_END.split(text))


def _escape_block(text: str) -> str:
    """Escape one paragraph except code spans, which end with as many backticks as they start with (CommonMark 6.1)."""
    result, done, at = "", 0, 0
    while match := _TICKS_OR_ESCAPED.search(text, at):
        at = match.end()
        if match[0].startswith("\\"):
            continue
        closing = next((ticks for ticks in _TICKS.finditer(text, at) if len(ticks[0]) == len(match[0])), None)
        if closing:
            result += _escape_plain(text[done : match.start()]) + text[match.start() : closing.end()]
            done = at = closing.end()
    return result + _escape_plain(text[done:])


def _escape_plain(text: str) -> str:
    # every second part is a formula
    parts = _FORMULA.split(text)
    parts[::2] = (
        part.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("![", "!&#91;")
        for part in parts[::2]
    )
    parts[1::2] = (part.replace("<", "\\lt ").replace(">", "\\gt ") for part in parts[1::2])
    return "".join(parts)
