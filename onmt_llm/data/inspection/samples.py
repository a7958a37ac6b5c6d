"""`n_sample`: write transformed examples to files, for inspection before a long training run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    for corpus in opened:
        _write(corpus, _paths(folder, corpus.name), spec.codec.vocab, n_sample)
        corpus.reader.close()
        logger.info("Samples of corpus '%s' in %s: %s", corpus.name, folder, corpus.counts.summary())
    return {corpus.name: corpus.counts for corpus in opened}


def _paths(folder: Path, name: str) -> tuple[Path, Path, Path]:
    src, tgt, view = (folder / f"{name}.sample.{kind}" for kind in ("src", "tgt", "txt"))
    return src, tgt, view


def _write(corpus: Corpus, paths: tuple[Path, Path, Path], vocab: Vocab, n_sample: int) -> None:
    has_target = False
    with ExitStack() as stack:
        places = [stack.enter_context(atomic_file(path)) for path in paths]
        src, tgt, view = (stack.enter_context(place.open("w", encoding="utf-8", newline="\n")) for place in places)
        samples = _samples(corpus)
        for raw, example, encoded in samples if n_sample < 0 else islice(samples, n_sample):
            print(_line(example.src), file=src)
            print(_line(example.tgt), file=tgt)
            has_target = has_target or bool(example.tgt)
            print(_view(raw, example, encoded, vocab), file=view)
    if not has_target:
        paths[1].unlink()


def _samples(corpus: Corpus) -> Iterator[tuple[Example, Example, Encoded]]:
    """Kept examples in order: as read, transformed, and encoded."""
    for record in iter(corpus.reader.read, None):
        for example in corpus.examples([record]):
            encoded, texts = corpus.encode(example), corpus.raw(record)
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
