"""`onmt_llm_data export`: write the records of the corpora that a run would train on, or their texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from onmt_llm.atomic import replacing
from onmt_llm.data.corpus import Corpus
from onmt_llm.data.example import Example
from onmt_llm.data.parallel import RecordChunk, run_chunks
from onmt_llm.data.selection import FieldReader
from onmt_llm.data.spec import PipelineSpec, split_corpora
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.optional import require
from onmt_llm.text.segment import Segment

Content = Literal["record", "text"]
FileFormat = Literal["jsonl", "parquet"]

_CHUNK = 1 << 12
"""Records per chunk: fixed, since random transforms are seeded per chunk."""


def export(
    spec: PipelineSpec, folder: Path, *, content: Content, form: FileFormat, processes: int = 1
) -> dict[str, tuple[Path, CorpusCounts]]:
    """Write a file for every corpus.

    Args:
        spec: The corpora and their processing.
        folder: Output folder.
        content: `record`: the objects and rows of which at least one example is left after all transforms, as they are.
            `text`: what the transforms before the tokeniser leave.
        form: FileFormat of the files.
        processes: Number of processes; the files do not depend on it.

    Returns:
        The file of each corpus, and the counts of its examples.

    Raises:
        ConfigError: A corpus consists of tokens, or the records of one have no keys.
        DataError: A file is missing or wrong; or the values of a field do not fit into one column.
    """
    for name, corpus in spec.corpora.items():
        if corpus.path_tokens:
            raise ConfigError(f"Corpus '{name}' must consist of text to be exported, but has path_tokens.")
        if content == "record" and not corpus.has_keys:
            raise ConfigError(
                f"Corpus '{name}' must consist of JSON objects or rows for `export_as: record`, but is a text file.",
                hint="export_as: text",
            )
    train, valid = split_corpora(spec.corpora)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for part, training in ((train, True), (valid, False)):
        for name, corpus in part.items():
            text = corpus.model_copy(update={"path_packed": None})
            mine = replace(spec, corpora={name: text}, training=training, text_only=content == "text")
            path, counts = folder / f"{name}.{form}", CorpusCounts()
            with replacing(path) as unfinished, _WRITERS[form](unfinished) as writer:
                for _, (found, items) in run_chunks(mine, _Items(content), processes=processes, size=_CHUNK):
                    counts.add(found)
                    writer.write(items)
            written[name] = path, counts
    return written


@dataclass(frozen=True)
class _Items:
    """What is written of a chunk."""

    content: Content

    def __call__(self, corpus: Corpus, chunk: RecordChunk) -> tuple[CorpusCounts, list[dict[str, Any]]]:
        counts = CorpusCounts()
        examples = corpus.examples(chunk.records, counts)
        if self.content == "text":
            counts.kept += len(examples)
            return counts, [text_item(example) for example in examples]
        left = {(example.path, example.line) for example in examples if corpus.encode(example, counts) is not None}
        fields = FieldReader(corpus.name, corpus.config)
        kept = [record for record in chunk.records if (record.paths[0], record.line) in left]
        return counts, [dict(item) for record in kept if (item := fields(record)) is not None]


def text_item(example: Example) -> dict[str, Any]:
    """An example as an object: `prompt` and `answer`, or `text` with the (start, end) of the trained parts of it, where
    not all of it is trained."""
    if example.tgt:
        return {"prompt": _text(example.src), "answer": _text(example.tgt)}
    trained, place = [], 0
    for segment in example.src:
        length = len(_text([segment]))
        if segment.train_on and length:
            trained.append([place, place + length])
        place += length
    text = _text(example.src)
    return {"text": text} if trained == [[0, len(text)]] else {"text": text, "trained": trained}


def _text(side: Sequence[Segment]) -> str:
    return "".join("".join(each.tokens or ()) if each.text is None else each.text for each in side)


class _Writer(Protocol):
    def write(self, items: Sequence[Mapping[str, Any]]) -> None: ...


class _JsonlWriter:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, items: Sequence[Mapping[str, Any]]) -> None:
        self._file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


class _ParquetWriter:
    """A Parquet file whose columns are those of the first chunk that is not empty."""

    def __init__(self, path: Path) -> None:
        self._arrow = require("pyarrow", "format: parquet")
        self._parquet = require("pyarrow.parquet", "format: parquet", "pyarrow")
        self._path = path
        self._writer: Any = None

    def write(self, items: Sequence[Mapping[str, Any]]) -> None:
        if not items:
            return
        schema = None if self._writer is None else self._writer.schema
        try:
            if schema is not None and (more := {key for item in items for key in item} - set(schema.names)):
                raise ValueError(f"later records have {', '.join(sorted(more))} too")
            table = self._arrow.Table.from_pylist(list(items), schema=schema)
        except (self._arrow.ArrowException, ValueError, TypeError) as error:
            raise DataError(
                f"The records of {self._path.name} must have the same fields and types, but have not: {error}.",
                hint="format: jsonl",
            ) from error
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._path, self._arrow.schema([]))
        self._writer.close()


@contextmanager
def _jsonl(path: Path) -> Iterator[_Writer]:
    with path.open("w", encoding="utf-8") as file:
        yield _JsonlWriter(file)


@contextmanager
def _parquet(path: Path) -> Iterator[_Writer]:
    writer = _ParquetWriter(path)
    try:
        yield writer
    finally:
        writer.close()


class _Open(Protocol):
    def __call__(self, path: Path) -> AbstractContextManager[_Writer]: ...


_WRITERS: dict[FileFormat, _Open] = {"jsonl": _jsonl, "parquet": _parquet}
