"""Readers: corpus files as records of raw bytes, in order, from any saved position.

A *record* (`record.py`) is one line, JSON object, table row or document, still undecoded. A *reader* only finds where
records begin and end; `parsing` makes examples of them. Skipping the records of other ranks therefore costs disk reads
only, and a short list of numbers (byte offsets and a line number) is enough to resume. `check` finds damaged, missing
and non-parallel files before a run starts. Plain files also have random access by record number through a cached
index; that is what a global shuffle needs.

Read `record` (the `Reader` protocol), `lines`, and `opening` (which reader a corpus gets). Other formats: `documents`,
`json_array`, `rows` (CSV, TSV), `tables` (Parquet, Arrow). Files: `files`, `compressed`. In random order: `shuffled`.
Folders of Hugging Face datasets: `dataset_folder`. The user's own formats: `plugins`.
 Random access: `numbered`, `index`, `index_file`.
"""

from onmt_llm.data.readers.index import IndexCache
from onmt_llm.data.readers.lines import read_lines
from onmt_llm.data.readers.opening import check_readers, open_reader
from onmt_llm.data.readers.plugins import READERS
from onmt_llm.data.readers.record import BadRecord, Reader, Record, decode
from onmt_llm.data.readers.shuffled import ShuffledReader

__all__ = [
    "READERS",
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
