"""`onmt_llm_data pack` and `merge`: write token shards."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from onmt_llm.atomic import AtomicDirectory
from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.example import Encoded
from onmt_llm.data.parallel import RecordChunk, run_chunks
from onmt_llm.data.ray_chunks import ray_chunks
from onmt_llm.data.readers import Record
from onmt_llm.data.spec import PipelineSpec, split_corpora
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.token_shards.fingerprint import fingerprint, inputs_of, recipe, text_files
from onmt_llm.data.token_shards.open import vocabularies
from onmt_llm.data.token_shards.records import ArrayName, skipped_counts
from onmt_llm.data.token_shards.shard import ENDINGS, INDEX, ShardWriter, damaged, read_index, write_index
from onmt_llm.data.transforms.tokenize import Tokenize
from onmt_llm.errors import CheckpointError, ConfigError, DataError
from onmt_llm.log import logger

_GROUP = 256
SHARD_RECORDS = 1 << 16
"""Records per shard: fixed, so that the files do not depend on the number of processes."""
CHUNK_RECORDS = 1 << 10
"""Records that a process tokenises at once."""


RunChunks = Callable[[PipelineSpec, "_Tokenise"], Iterator[tuple[int, "_Tokenised"]]]
"""Tokenises all chunks of one corpus, in order; see `run_chunks`."""


def on_this_machine(processes: int) -> RunChunks:
    """Tokenise in this many processes."""
    return functools.partial(run_chunks, processes=processes, size=CHUNK_RECORDS)


def on_ray(address: str | None) -> RunChunks:
    """Tokenise on a cluster of Ray.

    Args:
        address: See `ray_cluster.connect`.
    """
    return functools.partial(ray_chunks, address=address, size=CHUNK_RECORDS)


def pack(spec: PipelineSpec, folder: Path, *, run: RunChunks | None = None) -> dict[str, Path]:
    """Tokenise every text corpus once, for all later epochs.

    Args:
        spec: The corpora and their processing; each is written to its `path_packed`.
        folder: Output folder for corpora without `path_packed`.
        run: Where to tokenise; the files do not depend on it. None = in this process.

    Returns:
        The folder of each corpus' shards; one that was there already is left as it is.

    Raises:
        ConfigError: A transform draws at random, or looks at several examples together; or the objective is not sft.
        DataError: A file is missing or wrong.
    """
    data = spec.data
    if data.objective != "sft":
        raise ConfigError(f"objective must be sft for corpora that are packed, but is {data.objective}.")
    train, _ = split_corpora(spec.corpora)
    written: dict[str, Path] = {}
    for name, corpus in spec.corpora.items():
        if corpus.path_tokens:
            logger.info("Corpus '%s' consists of tokens already.", name)
            continue
        text = corpus.model_copy(update={"path_packed": None})
        mine = replace(spec, corpora={name: text}, seed=0, training=name in train)
        (opened,) = open_corpora(mine)
        _check_repeatable(opened, mine.training)
        made_by = recipe(text, mine)
        inputs = inputs_of(text_files(text))
        output = Path(corpus.path_packed or folder) / f"{name}-{fingerprint(made_by, inputs)[:16]}"
        written[name] = output
        if (output / INDEX).is_file():
            logger.info("Corpus '%s' is packed already: %s", name, output)
            continue
        head = {"corpus": name, "recipe": made_by, "inputs": inputs}
        _pack(mine, output, head, run or on_this_machine(1))
    return written


def merge(folders: Sequence[Path], output: Path) -> Path:
    """Merge the shards of several folders, with hard links instead of copies if possible.

    Raises:
        ConfigError: Nothing to merge is named.
        DataError: They are of different vocabularies or tasks, one of them cannot be read, or `output` is there.
    """
    if not folders:
        raise ConfigError("merge must be given folders of token shards, but is given none.")
    indexes = [read_index(folder) for folder in folders]
    for folder, index in zip(folders, indexes, strict=True):
        differing = [key for key in ("parts", "vocabularies") if index[key] != indexes[0][key]]
        if differing:
            raise DataError(
                f"Shards that are merged must have the same {' and '.join(differing)}, "
                f"but those of {folders[0]} and {folder} differ."
            )
    total = CorpusCounts()
    shards: list[dict[str, Any]] = []
    with _complete(output) as unfinished:
        for folder, index in zip(folders, indexes, strict=True):
            total.add(CorpusCounts.from_dict(index["counts"]))
            for shard in index["shards"]:
                name = f"{len(shards):05d}"
                for ending in ENDINGS:
                    _link(folder / f"{shard['name']}{ending}", unfinished / f"{name}{ending}")
                shards.append({**shard, "name": name})
        recipes = {"recipe": {"merged": [index["recipe"] for index in indexes]}, "inputs": []}
        write_index(unfinished, {**indexes[0], **recipes, "counts": total.to_dict(), "shards": shards})
    return output


def verify(folder: Path) -> int:
    """Check every file of a folder against its hash; returns how many there are.

    Raises:
        DataError: Some are not as they were written.
    """
    wrong = damaged(folder)
    if wrong:
        raise DataError(f"{len(wrong)} files of {folder} are not as written: {', '.join(wrong[:10])}.")
    return len(read_index(folder)["shards"]) * len(ENDINGS)


def _check_repeatable(corpus: Corpus, training: bool) -> None:
    for transform in corpus.transforms:
        if training and transform.draws:
            raise ConfigError(
                f"Transforms of a corpus that is packed must not draw at random, but '{transform.name}' of corpus "
                f"'{corpus.name}' does: every epoch would be the same.",
                hint="leave it out, or leave out path_packed",
            )
        if transform.needs_neighbours or transform.compares:
            raise ConfigError(
                f"Transforms of a corpus that is packed must look at each example by itself, but '{transform.name}' of "
                f"corpus '{corpus.name}' looks at several together.",
                hint="apply it to the text in advance, or leave out path_packed",
            )


def _pack(spec: PipelineSpec, output: Path, head: Mapping[str, Any], run: RunChunks) -> None:
    total = CorpusCounts()
    shards: list[dict[str, Any]] = []
    codec = spec.codec
    vocab_size = max(len(codec.vocab), len(codec.src_vocab))
    with _complete(output) as unfinished:
        parts: tuple[ArrayName, ...] | None = None
        for writer in _shards(run(spec, _Tokenise(vocab_size)), vocab_size, total):
            shards.append(writer.write(unfinished, len(shards)))
            parts = parts or writer.parts
        if not total.kept:
            raise DataError(f"Corpus '{head['corpus']}' must yield at least one example, but {total.summary()}.")
        logger.info("Corpus '%s' packed: %s", head["corpus"], total.summary())
        vocab = codec.vocab
        write_index(
            unfinished,
            {
                **head,
                "task": codec.task,
                "parts": parts,
                "vocabularies": vocabularies(codec),
                "vocab_size": len(vocab),
                "bos_id": vocab.bos_id,
                "eos_id": vocab.eos_id,
                "pad_id": vocab.pad_id,
                "counts": total.to_dict(),
                "shards": shards,
            },
        )


_Tokenised = tuple[CorpusCounts, ShardWriter]
"""The counts and the tokens of consecutive records."""


@dataclass(frozen=True)
class _Tokenise:
    """Tokenises a chunk."""

    vocab_size: int

    def __call__(self, corpus: Corpus, chunk: RecordChunk) -> _Tokenised:
        writer = ShardWriter(self.vocab_size)
        total = CorpusCounts()
        for start in range(0, len(chunk.records), _GROUP):
            for line, examples, counts in _each(corpus, chunk.records[start : start + _GROUP]):
                writer.add(line, examples, skipped_counts(counts))
                total.add(counts)
        return total, writer


def _shards(chunks: Iterator[tuple[int, _Tokenised]], vocab_size: int, total: CorpusCounts) -> Iterator[ShardWriter]:
    """Chunks of any sizes as shards of `SHARD_RECORDS` records, of which the last may have fewer; adds to `total`."""
    shard = ShardWriter(vocab_size)
    for _, (counts, chunk) in chunks:
        total.add(counts)
        start = 0
        while start < len(chunk):
            stop = min(len(chunk), start + SHARD_RECORDS - len(shard))
            shard.extend(chunk, start, stop)
            start = stop
            if len(shard) == SHARD_RECORDS:
                yield shard
                shard = ShardWriter(vocab_size)
    if len(shard):
        yield shard


def _each(corpus: Corpus, records: Sequence[Record]) -> Iterator[tuple[int, list[Encoded], CorpusCounts]]:
    """Line of each record, its examples, and their counts.

    Tokenisers are fastest on many texts, and count nothing; all else is done record by record, so that what happens to
    each is known.
    """
    counts = [CorpusCounts() for _ in records]
    examples = []
    for record, happened in zip(records, counts, strict=True):
        happened.add_read([record])
        examples.append(corpus.parse(record, happened))
    for transform in corpus.transforms:
        if isinstance(transform, Tokenize):
            tokenised = iter(transform.batch([example for own in examples for example in own]))
            examples = [list(islice(tokenised, len(own))) for own in examples]
            continue
        examples = [corpus.apply(transform, own, happened) for own, happened in zip(examples, counts, strict=True)]
    for record, own, happened in zip(records, examples, counts, strict=True):
        yield record.line, [found for each in own if (found := corpus.encode(each, happened)) is not None], happened


@contextmanager
def _complete(output: Path) -> Iterator[Path]:
    """A folder that is renamed to `output` once it is complete."""
    if output.exists():
        raise DataError(f"The output must not exist, but {output} does.", hint="remove it, or choose another name")
    try:
        with AtomicDirectory(output) as unfinished, unfinished.translated_errors():
            yield unfinished.directory
    except CheckpointError as error:
        raise DataError(error.message, hint=error.hint) from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
