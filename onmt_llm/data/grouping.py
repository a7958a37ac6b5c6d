"""`grouped`: a corpus as several, one for each group of its files, by a table that describes them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers.files import bare_suffix, is_compressed
from onmt_llm.data.readers.opening import BESIDE, SOURCES, one_file_each
from onmt_llm.errors import ConfigError, DataError

_OPTIONS = ("group_by", "group_table", "group_weights")


def grouped(name: str, corpus: CorpusConfig) -> dict[str, CorpusConfig]:
    """The corpora that `group_by` makes of a corpus, by name; the corpus itself without that option.

    Args:
        name: Name of the corpus, with which those of the groups begin.
        corpus: Its options.

    Returns:
        A corpus `NAME_GROUP` for each group, in the order of the files. The weights add up to that of the corpus;
        `path_packed` is a folder for each group.

    Raises:
        ConfigError: The options do not fit together, or the table lacks a column.
        DataError: The table cannot be read, a file has no row, or a weight is no positive number.
    """
    given = [option for option in _OPTIONS if getattr(corpus, option)]
    if not given:
        return {name: corpus}
    if corpus.group_by is None or corpus.group_table is None:
        raise ConfigError(
            f"Corpus '{name}' must have group_by and group_table if it is to be grouped, but has {' and '.join(given)}."
        )
    table = GroupTable.read(name, Path(corpus.group_table))
    table.check_columns(name, corpus)
    groups: dict[str, list[tuple[CorpusConfig, _Row]]] = {}
    for part in one_file_each(name, corpus):
        row = table.row_of(name, Path(next(value[0] for key in SOURCES if (value := getattr(part, key)))))
        groups.setdefault(row.cells[corpus.group_by], []).append((part, row))
    weights = {
        group: _weight(table, [row for _, row in parts], corpus.group_weights) for group, parts in groups.items()
    }
    whole = sum(weights.values())
    own: dict[str, Any] = {"group_by": None, "group_table": None, "group_weights": [], "split": None}
    return {
        f"{name}_{group}": corpus.model_copy(
            update={
                **own,
                **_files([part for part, _ in parts]),
                "weight": corpus.weight * weights[group] / whole,
                "path_packed": corpus.path_packed and str(Path(corpus.path_packed) / group),
            }
        )
        for group, parts in groups.items()
    }


@dataclass(frozen=True)
class _Row:
    """A line of the table, and its cells by column."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class GroupTable:
    """A table with a row for each file or folder of a corpus.

    Attributes:
        path: Of the table.
        columns: Its columns; the first has the names.
        rows: Its rows by name, in lower case.
    """

    path: Path
    columns: Sequence[str]
    rows: Mapping[str, _Row]

    @classmethod
    def read(cls, corpus: str, path: Path) -> GroupTable:
        """Read a .csv or .tsv file with a header.

        Raises:
            DataError: It cannot be read, or two rows have the same name.
        """
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                lines = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
                columns = [cell.strip() for cell in next(lines, [])]
                found = [(lines.line_num, [cell.strip() for cell in line]) for line in lines if line]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"group_table of corpus '{corpus}' must be a table in UTF-8, but {path} is not ({reason})."
            ) from error
        rows: dict[str, _Row] = {}
        for number, cells in found:
            if len(cells) != len(columns):
                raise DataError(f"{path}:{number} must have {len(columns)} cells, as the header, but has {len(cells)}.")
            key = cells[0].strip("/").lower()
            if key in rows:
                raise DataError(
                    f"{path} must have one row for '{cells[0]}', but has them in lines {rows[key].line} and {number}."
                )
            rows[key] = _Row(number, dict(zip(columns, cells, strict=True)))
        return cls(path, columns, rows)

    def check_columns(self, name: str, corpus: CorpusConfig) -> None:
        """Refuse options that name columns which the table lacks."""
        named = [("group_by", corpus.group_by), *(("group_weights", each) for each in corpus.group_weights)]
        for option, column in named:
            if column not in self.columns:
                raise ConfigError(
                    f"{option} of corpus '{name}' must be a column of {self.path} ({', '.join(self.columns)}), "
                    f"but is '{column}'."
                )

    def row_of(self, corpus: str, file: Path) -> _Row:
        """The row of a file: that whose name is the end of its path, or of its folder's; the longest, ignoring case.

        Raises:
            DataError: There is none.
        """
        bare = file.with_suffix("") if is_compressed(file) else file
        bare = bare.with_suffix("") if bare_suffix(file) else bare
        paths = [path.parts for path in (file, bare, file.parent)]
        names = ["/".join(parts[start:]).lower() for parts in paths for start in range(len(parts))]
        row = next((self.rows[name] for name in names if name in self.rows), None)
        if row is None:
            raise DataError(
                f"Every file of corpus '{corpus}' must have a row in {self.path}, but {file} has none.",
                hint=f"its row begins with '{'/'.join(file.parent.parts[-2:])}' or '{'/'.join(bare.parts[-3:])}'",
            )
        return row


def _weight(table: GroupTable, rows: Sequence[_Row], columns: Sequence[str]) -> float:
    """The numbers in these columns, added up over rows, of which each counts once; without columns 1."""
    distinct = {row.line: row for row in rows}.values()
    return sum(_number(table, row, column) for row in distinct for column in columns) if columns else 1.0


def _number(table: GroupTable, row: _Row, column: str) -> float:
    try:
        number = float(row.cells[column])
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise DataError(
            f"{table.path}:{row.line} must have a positive number under {column}, but has '{row.cells[column]}'."
        )
    return number


def _files(parts: Sequence[CorpusConfig]) -> dict[str, list[str]]:
    """The path options of one corpus with the files of all."""
    keys = [key for key in (*SOURCES, *BESIDE) if getattr(parts[0], key)]
    return {key: [path for part in parts for path in getattr(part, key)] for key in keys}
