"""Readers: corpus files as records of raw bytes, in order, from any saved position.

A reader only finds where records begin and end; `records.py` decodes them. So a rank that skips the records of other
ranks pays for the disk alone, and a saved position (byte offsets and a line number) is all that a restart needs.
"""

from onmt_llm.data.readers.index import IndexCache
from onmt_llm.data.readers.lines import read_lines
from onmt_llm.data.readers.opening import check_readers, open_reader
from onmt_llm.data.readers.record import BadRecord, Reader, Record, decode
from onmt_llm.data.readers.shuffled import ShuffledReader

__all__ = [
    "BadRecord",
    "IndexCache",
    "Reader",
    "Record",
    "ShuffledReader",
    "check_readers",
    "decode",
    "open_reader",
    "read_lines",
]
