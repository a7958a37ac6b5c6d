"""Selection: which records of a corpus are read at all (`where`, `unique_by`, `sample`).

`conditions` tests the fields of a record. `unique_by` and `sample` depend on the whole corpus: one pass before a run
(`select`) finds the numbers of the records, which are kept on disk like a line index, and `SelectedReader` reads these
records only. So memory does not grow with the corpus, positions are exact, and every process agrees.

Read `conditions`, then `fields` (the fields of a record), `select`, and `duplicates`.
"""

from onmt_llm.data.selection.conditions import Where
from onmt_llm.data.selection.fields import FieldReader
from onmt_llm.data.selection.select import SelectedReader, selected_reader

__all__ = ["FieldReader", "SelectedReader", "Where", "selected_reader"]
