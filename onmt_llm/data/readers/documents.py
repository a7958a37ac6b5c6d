"""`DocumentReader`: plain-text documents, separated by empty lines or one per file."""

from __future__ import annotations

from pathlib import Path

from onmt_llm.data.readers.files import check_file, is_compressed
from onmt_llm.data.readers.index import IndexCache
from onmt_llm.data.readers.lines import MAX_BYTES, LineFile
from onmt_llm.data.readers.numbered import NumberedReader
from onmt_llm.data.readers.record import Record, strip_break


class DocumentReader(NumberedReader):
    """Reads one example per document. A document ends at an empty line, or only at the end of the file.

    Args:
        corpus: Its name, for messages.
        path: The file.
        at_blank: Whether an empty line ends a document.
        cache: Stores indexes.
        max_bytes: A longer document is split between two words.
    """

    def __init__(
        self, corpus: str, path: Path, *, at_blank: bool, cache: IndexCache, max_bytes: int = MAX_BYTES
    ) -> None:
        super().__init__(corpus, path, cache, LineFile(path))
        self._at_blank = at_blank
        self._max_bytes = max_bytes

    def check(self) -> None:
        check_file(self.corpus, self.paths[0])
        if is_compressed(self.paths[0]):
            self._cache.lines(self.paths[0])  # to the end, where the checksum is

    def read(self) -> Record | None:
        pieces: list[bytes] = []
        size = first = start = 0
        while (raw := self._file.read_piece(self._max_bytes + 1 - size)) is not None:
            line, self._line = self._line + 1, self._line + raw.endswith(b"\n")
            blank = not raw.strip()
            if blank and not pieces:
                continue
            if blank and self._at_blank:
                break
            if not pieces:
                first, start = line, self._file.offset - len(raw)
            pieces.append(raw)
            size += len(raw)
            if size > self._max_bytes:
                pieces = [self._cut(b"".join(pieces))]
                break
        return Record(first, (strip_break(b"".join(pieces)),), (start,), self.paths) if pieces else None

    def _record_kind(self) -> str:
        return f"{'documents' if self._at_blank else 'parts'}-{self._max_bytes}"

    def _reopened(self) -> DocumentReader:
        return DocumentReader(
            self.corpus, self.paths[0], at_blank=self._at_blank, cache=self._cache, max_bytes=self._max_bytes
        )

    def _cut(self, text: bytes) -> bytes:
        """Cut a text that is one byte too long after its last whole word; the rest is read next."""
        if text.endswith(b"\n"):
            return text
        end = max(text.rfind(space) for space in (b" ", b"\n", b"\t"))
        rest = end + 1
        if not text[: max(end, 0)].strip():
            # a single long word: cut at a character boundary
            end = self._max_bytes
            while end > 1 and text[end] & 0xC0 == 0x80:
                end -= 1
            rest = end
        self._file.push_back(text[rest:])
        return text[:end]
