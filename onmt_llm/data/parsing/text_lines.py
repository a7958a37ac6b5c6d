"""Lines of text files: their mask marker, and bytes that no text has."""

from __future__ import annotations

from pathlib import Path

from onmt_llm.data.readers import BadRecord
from onmt_llm.text.placeholders import MASK_BEFORE, from_line
from onmt_llm.text.segment import Segment


def split_at_marker(line: str, zero_out_prompt_loss: bool) -> list[Segment]:
    """Split a line at its last `｟_mask_before_｠`; the part before it is not trained. Markers are removed."""
    prompt, found, answer = line.rpartition(MASK_BEFORE)
    if not found:
        return [Segment(from_line(line))]
    prompt = from_line(prompt.replace(MASK_BEFORE, ""))
    parts = [Segment(prompt, train_on=not zero_out_prompt_loss), Segment(from_line(answer))]
    return [part for part in parts if part.text]


def zero_byte(raw: bytes, path: Path, line: int, offset: int) -> BadRecord:
    """The error for a record with a zero byte."""
    place = raw.index(b"\0")
    line += raw.count(b"\n", 0, place)
    return BadRecord(
        f"Text must have no zero bytes, but {path}:{line} holds one at offset {offset + place} of the file.",
        reason="zero_bytes",
        hint="part of the file is UTF-16, or was lost on writing: repair it, or skip such records with "
        "on_bad_line: skip",
    )
