"""`n_sample`: write transformed examples to files, for inspection before a long training run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from onmt_llm.atomic import atomic_file
from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.example import Encoded, Example
from onmt_llm.data.inspection.audit import marked
from onmt_llm.data.readers import check_readers
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.text.placeholders import to_line
from onmt_llm.text.segment import Segment
from onmt_llm.text.vocab import Vocab

_Sample = tuple[Example, Example, Encoded]
"""A kept example: as read, transformed, and encoded."""


def write_samples(spec: PipelineSpec, directory: str | Path, *, n_sample: int) -> dict[str, CorpusCounts]:
    """Write the first examples of each corpus as training would see them.

    For a corpus X: `X.sample.src` (tokens joined by spaces, one example per line), `X.sample.tgt` if examples have a
    target side, and a readable `X.sample.txt` with text, tokens, ids and the loss mask.

    Args:
        spec: The corpora, and what happens to them; `overwrite` allows replacing existing files.
        directory: `save_data`; the files go to `sample` below it.
        n_sample: Examples of each corpus, after the filters; -1 = all.

    Returns:
        Counts of the examples read, by corpus.

    Raises:
        ConfigError: A file exists already.
        DataError: As in training.
    """
    opened = open_corpora(spec)
    check_readers([corpus.reader for corpus in opened])
    folder = Path(directory) / "sample"
    taken = [path for corpus in opened for path in _paths(folder, corpus.name) if path.exists()]
    if taken and not spec.data.overwrite:
        raise ConfigError(f"Samples must not replace files, but {taken[0]} is there.", hint="-overwrite replaces them")
    folder.mkdir(parents=True, exist_ok=True)
    written = {corpus.name: CorpusCounts() for corpus in opened}
    for corpus in opened:
        samples = _samples(corpus, written[corpus.name])
        wanted = samples if n_sample < 0 else islice(samples, n_sample)
        _write(wanted, _paths(folder, corpus.name), spec.codec.vocab)
        corpus.reader.close()
        logger.info("Samples of corpus '%s' in %s: %s", corpus.name, folder, written[corpus.name].summary())
    return written


def _paths(folder: Path, name: str) -> tuple[Path, Path, Path]:
    src, tgt, view = (folder / f"{name}.sample.{kind}" for kind in ("src", "tgt", "txt"))
    return src, tgt, view


def _write(samples: Iterable[_Sample], paths: tuple[Path, Path, Path], vocab: Vocab) -> None:
    has_target = False
    with ExitStack() as stack:
        places = [stack.enter_context(atomic_file(path)) for path in paths]
        src, tgt, view = (stack.enter_context(place.open("w", encoding="utf-8", newline="\n")) for place in places)
        for raw, example, encoded in samples:
            print(_line(example.src), file=src)
            print(_line(example.tgt), file=tgt)
            has_target = has_target or bool(example.tgt)
            print(_view(raw, example, encoded, vocab), file=view)
    if not has_target:
        paths[1].unlink()


def _samples(corpus: Corpus, counts: CorpusCounts) -> Iterator[_Sample]:
    """Kept examples, in order."""
    for record in iter(corpus.reader.read, None):
        for example in corpus.examples([record], counts):
            encoded, texts = corpus.encode(example, counts), corpus.raw(record)
            if encoded is not None and texts:
                yield texts[example.part], example, encoded


def _line(side: Sequence[Segment]) -> str:
    """Tokens of a side, escaped to fit on one line."""
    return to_line(" ".join(token for segment in side for token in segment.tokens or ()))


def _view(raw: Example, example: Example, encoded: Encoded, vocab: Vocab) -> str:
    part = f", example {example.part + 1} of its conversation" if example.part else ""
    lines = [f"line {example.line}{part}", f"text    | {_text(raw.src)}"]
    if raw.tgt:
        lines.append(f"target  | {_text(raw.tgt)}")
    if encoded.src is not None:
        lines.append(f"source  | {_line(example.src)}")
        lines.append(f"src ids | {' '.join(map(str, encoded.src))}")
    lines.append(f"tgt ids | {' '.join(map(str, encoded.tgt))}")
    lines.append(f"trained | {to_line(marked(encoded, vocab))}")
    if encoded.chosen is not None:
        lines.append(f"answer  | {'chosen' if encoded.chosen else 'rejected'}")
    if encoded.rejected is not None:
        lines.append(f"rejected| {to_line(marked(encoded.rejected, vocab))}")
    return "\n".join(lines) + "\n"


def _text(side: Sequence[Segment]) -> str:
    parts = (segment.text if segment.text is not None else " ".join(segment.tokens or ()) for segment in side)
    return to_line("".join(parts))
