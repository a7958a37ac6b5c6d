"""`READERS`: readers of the user's own file formats (`plugins`, `reader`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from onmt_llm.data.readers.record import Record
from onmt_llm.errors import DataError, OnmtLlmError
from onmt_llm.registry import Registry


class NumberedRows(Protocol):
    """The records of a file, by number; a list of dicts is one, and so is a map-style dataset of torch."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Mapping[str, Any]: ...


OpenRows = Callable[[Path], NumberedRows]

READERS: Registry[OpenRows] = Registry("reader")
"""Registered functions that open a file of `path_table` as `NumberedRows`, by the name that `reader` gives."""


class PluginReader:
    """Reads the records of a registered reader.

    Args:
        corpus: Name of the corpus, for messages.
        path: What is read.
        name: Name of the reader.
    """

    def __init__(self, corpus: str, path: Path, name: str) -> None:
        self.corpus = corpus
        self.paths: tuple[Path, ...] = (path,)
        self._name = name
        self._open_rows = READERS.get(name)
        self._rows: NumberedRows | None = None
        self._number = 0

    def check(self) -> None:
        if not self.paths[0].is_file():
            raise DataError(f"Corpus '{self.corpus}' must be a file, but {self.paths[0]} is none.")
        self.count()

    def read(self) -> Record | None:
        if self._number >= self.count():
            return None
        self._number += 1
        return self.at(self._number - 1)

    def skip(self, number: int) -> int:
        passed = min(number, self.count() - self._number)
        self._number += passed
        return passed

    def tell(self) -> list[int]:
        return [self._number]

    def seek(self, position: Sequence[int]) -> None:
        (self._number,) = position
        if self._number > self.count():
            raise DataError(
                f"The saved position must lie inside {self.paths[0]}, but is record {self._number} of {self.count()}.",
                hint="the data have changed since the run was saved",
            )

    def rewind(self) -> None:
        self._number = 0

    def close(self) -> None:
        self._rows = None

    def count(self) -> int:
        return self._of_plugin(lambda: len(self._opened()), "its length")

    def at(self, number: int) -> Record:
        raw = self._of_plugin(
            lambda: json.dumps(dict(self._opened()[number]), ensure_ascii=False).encode(), f"record {number + 1}"
        )
        return Record(number + 1, (raw,), (0,), self.paths)

    def expect(self, numbers: Sequence[int]) -> None:
        """Do nothing: how records are fetched is the plugin's affair."""

    def _opened(self) -> NumberedRows:
        if self._rows is None:
            self._rows = self._open_rows(self.paths[0])
        return self._rows

    def _of_plugin(self, get: Callable[[], Any], what: str) -> Any:
        try:
            return get()
        except OnmtLlmError:
            raise
        except Exception as error:  # the user's code: it may raise anything
            fault = f"{type(error).__name__}: {error}"
            raise DataError(
                f"Reader '{self._name}' must give {what} of {self.paths[0]}, but fails: {fault}."
            ) from error
