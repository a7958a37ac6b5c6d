"""Model and user text made safe for a Markdown view: shown letter for letter, never run and never fetched.

Outside code, `&`, `<` and `>` become entities, so that `<int>` and `</s>` are seen instead of being swallowed as HTML tags,
and Markdown images lose their meaning, because a page that fetches an image tells its server what the model wrote. Inside
code spans and fences Markdown shows text as it is, so nothing is touched there.
"""

from __future__ import annotations

import re

_FENCE = re.compile(r"^ {0,3}(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})")
_TICKS = re.compile(r"`+")


def escape_markdown(text: str) -> str:
    """Escape everything outside code; code fences may be unfinished, as they are while an answer arrives."""
    parts: list[str] = []
    prose: list[str] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        if fence:
            parts.append(line)
            if _closes(line, fence):
                fence = ""
        elif match := _FENCE.match(line):
            parts += [_escape_prose("".join(prose)), line]
            prose, fence = [], match["fence"]
        else:
            prose.append(line)
    return "".join([*parts, _escape_prose("".join(prose))])


def _closes(line: str, fence: str) -> bool:
    mark = line.strip()
    return len(mark) >= len(fence) and set(mark) == {fence[0]}


def _escape_prose(text: str) -> str:
    """Escape text that holds no fence; code spans, closed by as many backticks as opened them, are kept.

    A span cannot reach over an empty line (CommonMark 6.1 with 4.8).
    """
    return "".join(
        part if index % 2 else _escape_paragraph(part) for index, part in enumerate(re.split(r"(\n[ \t]*\n)", text))
    )


def _escape_paragraph(text: str) -> str:
    result, at = "", 0
    while opening := _TICKS.search(text, at):
        closing = next((m for m in _TICKS.finditer(text, opening.end()) if len(m[0]) == len(opening[0])), None)
        result += _escape_plain(text[at : opening.start()])
        at = closing.end() if closing else opening.end()
        result += text[opening.start() : at]
    return result + _escape_plain(text[at:])


def _escape_plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("![", "!\\[")
