"""`onmt_llm_data sample`: trace examples through every transform to the ids that the model sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.example import IGNORED, Encoded, Example
from onmt_llm.data.readers import Record, check_readers
from onmt_llm.data.spec import PipelineSpec, derived_seed, split_corpora
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.transforms.transform import Transform
from onmt_llm.text.codec import Codec
from onmt_llm.text.segment import Segment
from onmt_llm.text.vocab import Vocab

KEPT = "kept"
HELD = "held_back"
READ = "read"
ExamplePlace = tuple[Path | None, int, int]
"""File and line of a record, and the number of an example within it."""

_GROUP = 16
_LOOKED_AT = 200
"""Maximum number of records read per example wanted."""


@dataclass(frozen=True)
class TraceSpan:
    """A segment at some stage: text or tokens."""

    text: str | None
    tokens: tuple[str, ...] | None
    trained: bool


@dataclass(frozen=True)
class Stage:
    """An example as read, or after a transform.

    Attributes:
        name: `read`, or the transform.
        sides: Source (or the whole text), and target.
    """

    name: str
    sides: tuple[tuple[TraceSpan, ...], ...]


@dataclass(frozen=True)
class Token:
    """One token as the model sees it.

    Attributes:
        text: Of the vocabulary.
        id: Its number; None at the end of an input.
        trained: Whether it is trained.
        unknown: Whether the original token is not in the vocabulary.
    """

    text: str
    id: int | None
    trained: bool
    unknown: bool


@dataclass
class Trace:
    """One example through all stages.

    Attributes:
        corpus: Name of the corpus.
        path: The file.
        line: First line of the record.
        raw: The record's parts as stored in the files.
        stages: Its stages, in order.
        outcome: `kept`, or the reason why it was dropped.
        src: Input of the encoder; empty for a language model.
        tgt: Input of the decoder and the last label.
        part: Number of the example within its record, from 0.
        parts: Number of the record's examples as read: above 1 for a conversation with several training texts.
    """

    corpus: str
    path: Path | None
    line: int
    raw: tuple[str, ...]
    stages: list[Stage] = field(default_factory=list)
    outcome: str = KEPT
    src: list[Token] = field(default_factory=list)
    tgt: list[Token] = field(default_factory=list)
    part: int = 0
    parts: int = 1

    @property
    def place(self) -> ExamplePlace:
        """File, line and part."""
        return self.path, self.line, self.part

    def branch(self) -> Trace:
        """A trace for another example of the same record."""
        return replace(self, stages=list(self.stages), src=[], tgt=[])


@dataclass(frozen=True)
class Traces:
    """The traces of a corpus.

    Attributes:
        corpus: Its name.
        found: Traces of kept examples, and of dropped ones for each reason, in file order.
        looked_at: Records read.
    """

    corpus: str
    found: list[Trace]
    looked_at: int


def collect(spec: PipelineSpec, *, number: int) -> list[Traces]:
    """The first examples of each corpus, as a run would see them.

    Args:
        spec: Corpora of training and validation, and what happens to them.
        number: Kept examples per corpus; also the maximum of dropped examples per reason among the records read.

    Raises:
        ConfigError, DataError: As in training.
    """
    train, valid = split_corpora(spec.corpora)
    data = spec.data.model_copy(update={"skip_empty_level": "silent"})
    found: list[Traces] = []
    for part, training in ((train, True), (valid, False)):
        opened = open_corpora(replace(spec, corpora=part, data=data, training=training)) if part else []
        check_readers([corpus.reader for corpus in opened])
        for corpus in opened:
            found.append(_collect(corpus, spec, number))
            corpus.reader.close()
    return found


def _collect(corpus: Corpus, spec: PipelineSpec, number: int) -> Traces:
    found: list[Trace] = []
    outcomes: Counter[str] = Counter()
    records = iter(corpus.reader.read, None)
    looked_at = 0
    while outcomes[KEPT] < number and looked_at < number * _LOOKED_AT:
        group = list(islice(records, _GROUP))
        if not group:
            break
        for place, transform in enumerate(corpus.transforms):
            transform.reseed(derived_seed(spec.seed, corpus.name, looked_at, place))
        looked_at += len(group)
        for trace in follow(corpus, group, spec.codec):
            outcomes[trace.outcome] += 1
            if outcomes[trace.outcome] <= number:
                found.append(trace)
    return Traces(corpus.name, found, looked_at)


def follow(corpus: Corpus, records: Sequence[Record], codec: Codec) -> list[Trace]:
    """Trace all examples of some records, kept and dropped ones."""
    if corpus.holds_tokens:
        return [_of_tokens(example, corpus, codec) for example in corpus.examples(records, CorpusCounts())]
    ended: list[Trace] = []
    on_the_way: list[tuple[Trace, Example]] = []
    for record in records:
        raw = tuple(part.decode("utf-8", "replace") for part in record.parts)
        trace = Trace(corpus.name, record.paths[0], record.line, raw)
        counts = CorpusCounts()
        examples = corpus.parse(record, counts)
        if not examples:
            trace.outcome = _reason(counts)
            ended.append(trace)
        for example in examples:
            own = replace(trace, stages=[_stage(READ, example)], part=example.part, parts=len(examples))
            on_the_way.append((own, example))
    for transform in corpus.transforms:
        if transform.needs_neighbours or transform.compares:
            on_the_way = list(_through(transform, on_the_way, ended))
        else:
            # one by one, to know the reason for dropping each
            on_the_way = [item for pair in on_the_way for item in _through(transform, [pair], ended)]
    for trace, example in on_the_way:
        _finish(trace, example, corpus, codec)
    order: dict[tuple[Path | None, int], int] = {
        (record.paths[0], record.line): number for number, record in enumerate(records)
    }
    found = [*ended, *(trace for trace, _ in on_the_way)]
    return sorted(found, key=lambda trace: (order[trace.path, trace.line], trace.part))


def _through(
    transform: Transform, pairs: Sequence[tuple[Trace, Example]], ended: list[Trace]
) -> Iterator[tuple[Trace, Example]]:
    """Apply a transform: yields the resulting examples with their traces; traces of dropped ones go to `ended`."""
    left = {trace.place: trace for trace, _ in pairs}
    used: set[ExamplePlace] = set()
    stages = {place: list(trace.stages) for place, trace in left.items()}
    for example in transform.batch([example for _, example in pairs]):
        place = (example.path, example.line, example.part)
        place = place if place in left else next(iter(left))
        trace = left[place].branch() if place in used else left[place]
        used.add(place)
        trace.stages = [*stages[place], _stage(transform.name, example)]
        yield trace, example
    reasons = "+".join(sorted(transform.dropped)) or HELD
    transform.dropped.clear()
    for place, trace in left.items():
        if place not in used:
            trace.outcome = reasons
            trace.stages.append(Stage(transform.name, ()))
            ended.append(trace)


def _of_tokens(example: Example, corpus: Corpus, codec: Codec) -> Trace:
    trace = Trace(corpus.name, example.path, example.line, ())
    _finish(trace, example, corpus, codec)
    return trace


def _reason(counts: CorpusCounts) -> str:
    """Why the only example of these counts was dropped."""
    return next(iter(counts.dropped), HELD)


def _finish(trace: Trace, example: Example, corpus: Corpus, codec: Codec) -> None:
    counts = CorpusCounts()
    encoded = corpus.encode(example, counts)
    if encoded is None:
        trace.outcome = _reason(counts)
        return
    trace.src, trace.tgt = _source(encoded, codec), _target(encoded, codec.vocab)


def _stage(name: str, example: Example) -> Stage:
    return Stage(name, tuple(_side(side) for side in (example.src, example.tgt) if side))


def _side(segments: Sequence[Segment]) -> tuple[TraceSpan, ...]:
    return tuple(
        TraceSpan(segment.text, None if segment.tokens is None else tuple(segment.tokens), segment.train_on)
        for segment in segments
    )


def _source(encoded: Encoded, codec: Codec) -> list[Token]:
    if encoded.src is None:
        return []
    vocab = codec.src_vocab
    return [Token(vocab[id_], id_, False, id_ == vocab.unk_id) for id_ in encoded.src.tolist()]


def _target(encoded: Encoded, vocab: Vocab) -> list[Token]:
    """Every token of the sequence, from the first to the last; the last is unknown if it is not trained."""
    labels = encoded.labels.tolist()
    ids = [*encoded.tgt.tolist(), labels[-1]]
    trained = [False, *(label != IGNORED for label in labels)]
    return [
        Token("…", None, False, False) if id_ == IGNORED else Token(vocab[id_], id_, counts, id_ == vocab.unk_id)
        for id_, counts in zip(ids, trained, strict=True)
    ]
