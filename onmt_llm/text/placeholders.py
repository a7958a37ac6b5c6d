"""Placeholders `｟...｠`: text with line breaks on one line of a file, and back.

A corpus line writes a line break as `｟newline｠` (OpenNMT's convention); everywhere else in this package text has
real newlines. Text that looks like a placeholder is escaped, so `from_line(to_line(text)) == text` for every text
whose line endings are "\\n". Only this module knows the placeholders.
"""

from __future__ import annotations

import re

NEWLINE = "｟newline｠"
MASK_BEFORE = "｟_mask_before_｠"
"""Splits an example into the part without loss and the part with loss. Split *before* `from_line`."""

_LEFT_BRACKET = "｟U+FF5F｠"
_RESERVED = re.compile(r"｟(?=(?:newline|_mask_before_|U\+[0-9A-F]*)｠)")
_MARKER = re.compile(r"｟(?:newline|U\+([0-9A-F]{4,6}))｠")
_LOOKS_ESCAPED = re.compile(r"｟(?=U\+[0-9A-F]*｠)")
_ESCAPED = re.compile(r"｟U\+([0-9A-F]*)｠")


def to_line(text: str) -> str:
    """Text as one corpus line: "\\n" and "\\r\\n" become `｟newline｠`; text like a placeholder is escaped."""
    text = _RESERVED.sub(_LEFT_BRACKET, text).replace("\r\n", "\n")
    return text.replace("\n", NEWLINE).replace("\r", code_point("\r"))


def from_line(line: str) -> str:
    """The text of a corpus line; other placeholders (`｟ent_1｠`) are left unchanged."""
    if "｟" not in line:
        return line
    line = line.replace(NEWLINE, "\n")  # by far the most common placeholder
    return _MARKER.sub(_character, line) if "｟" in line else line


def code_point(character: str) -> str:
    """The placeholder of a character: "\\t" -> `｟U+0009｠`."""
    return f"｟U+{ord(character):04X}｠"


def escape(text: str, characters: re.Pattern[str]) -> str:
    """Replace every match of `characters` by its code point, and the empty text by `｟U+｠`; `unescape` reverses it."""
    if not text:
        return "｟U+｠"
    return characters.sub(lambda match: code_point(match[0]), _LOOKS_ESCAPED.sub(_LEFT_BRACKET, text))


def unescape(text: str) -> str:
    """Reverse `escape`."""
    return _ESCAPED.sub(_character, text) if "｟" in text else text


def _character(match: re.Match[str]) -> str:
    number = match[1]
    if not number:
        return "\n" if match[0] == NEWLINE else ""
    value = int(number, 16) if len(number) <= 6 else 0x110000
    is_character = value < 0x110000 and not 0xD800 <= value < 0xE000
    return chr(value) if is_character else match[0]
