"""`Pipeline`: corpora in, batches out, and a state from which the very next batch can be had again.

A bucket of records is read, transformed by corpus, sorted by length and cut into batches, which are then shuffled. All
of it depends only on the position of the readers at the start of the bucket, on the seed and on the number of the
bucket: so the state is small and plain, and restoring it means reading one bucket again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
from onmt_llm.config.section import Section
from onmt_llm.data.audit import audit, check_added_tokens
from onmt_llm.data.buckets import cut_batches
from onmt_llm.data.corpus import Corpus, open_corpora
from onmt_llm.data.counts import CorpusCounts
from onmt_llm.data.encoding import Encoded
from onmt_llm.data.mixing import Mixer, Source
from onmt_llm.data.model_text import ModelText
from onmt_llm.data.prefetch import prefetch
from onmt_llm.data.readers import Record, check_readers
from onmt_llm.data.records import Task
from onmt_llm.errors import DataError
from onmt_llm.log import log_once, logger
from onmt_llm.text.templates import Template
from onmt_llm.text.tokenizers import Tokenizer
from onmt_llm.text.vocab import Vocab

if TYPE_CHECKING:
    from onmt_llm.data.batching import Batch

_STATE_VERSION = 1


@dataclass(frozen=True)
class _Prepared:
    """A batch, the state behind it, and the counts of the bucket that it came from."""

    batch: Batch
    state: dict[str, Any]
    counts: dict[str, CorpusCounts]


class Pipeline:
    """Batches of weighted corpora.

    In training it goes on for ever, and iterating again continues behind the last batch consumed. In validation every
    pass reads the corpora once, from the start, bucket by bucket in order of length. One iterator at a time.

    Args:
        corpora: Corpora by name.
        data: Options of all corpora.
        batching: How examples become batches.
        options: Sections of the transforms, by `Transform.section`.
        vocab: Tokens of the decoder.
        src_vocab: Tokens of the encoder, where they differ.
        tokenizer: The checkpoint's tokeniser.
        src_tokenizer: That of the source side, where it differs.
        template: The checkpoint's chat template.
        task: "lm" or "seq2seq".
        add_bos: A language model's input begins with BOS.
        feature_vocabs: Values of the source tokens' features.
        seed: Of the order of batches and of random transforms.
        training: Endless, shuffled, with random transforms; else one ordered pass.
        rank: Which share of the examples is ours.
        world_size: Number of shares.

    Raises:
        ConfigError, DataError: Anything about options or files that can be known before the first example is read.
    """

    def __init__(
        self,
        corpora: Mapping[str, CorpusConfig],
        *,
        data: DataConfig,
        batching: BatchConfig,
        options: Mapping[str, Section],
        vocab: Vocab,
        src_vocab: Vocab | None = None,
        tokenizer: Tokenizer | None = None,
        src_tokenizer: Tokenizer | None = None,
        template: Template | None = None,
        task: Task,
        add_bos: bool,
        feature_vocabs: Sequence[Vocab] = (),
        seed: int,
        training: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        model = ModelText(task, vocab, src_vocab, tokenizer, src_tokenizer, template, add_bos, feature_vocabs)
        self._model = model
        self._corpora = open_corpora(corpora, data=data, options=options, model=model, training=training)
        check_added_tokens(corpora, data, options, model)
        check_readers([corpus.reader for corpus in self._corpora])
        sources = [Source(corpus.name, corpus.reader, corpus.weight) for corpus in self._corpora]
        self._mixer = Mixer(sources, infinite=training, rank=rank, world_size=world_size)
        self._training = training
        self._batching = batching
        self._batch_size = batching.batch_size if training else batching.valid_batch_size
        self._seed = seed
        self._pad_ids = (_pad_id(vocab), _pad_id(src_vocab or vocab))
        self._bucket = 0
        self._kept_epochs = {corpus.name: 0 for corpus in self._corpora}
        self._audited = False
        self._plan = {
            "rank": rank,
            "world_size": world_size,
            "seed": seed,
            "batch_size": self._batch_size,
            **batching.model_dump(include={"batch_type", "batch_size_multiple", "bucket_size"}),
        }
        self._start = self._state = self._snapshot()
        self._counts = self._copy_counts()

    @property
    def counts(self) -> dict[str, CorpusCounts]:
        """By corpus, what has happened up to the bucket of the last batch consumed."""
        return self._counts

    def summary(self) -> str:
        """The counts, one line a corpus."""
        return "\n".join(f"{name}: {counts.summary()}" for name, counts in self._counts.items())

    def state_dict(self) -> dict[str, Any]:
        """Plain data (JSON holds it) from which `load_state_dict` yields the batch after the last one consumed."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        With other batch options than then, the interrupted bucket begins anew, and a warning says so.

        Raises:
            DataError: The state is of other corpora, of another rank, or of files that have become shorter.
        """
        if state.get("version") != _STATE_VERSION:
            raise DataError(
                f"The saved data position must have version {_STATE_VERSION}, but has {state.get('version')}."
            )
        plan = state["plan"]
        for key in ("rank", "world_size"):
            if plan[key] != self._plan[key]:
                raise DataError(
                    f"The saved data position must be of {key} {self._plan[key]}, but is of {plan[key]}.",
                    hint="resume with as many processes as the run was saved with, or start with fresh data",
                )
        consumed = state["consumed"]
        if plan != self._plan and consumed:
            logger.warning("Batch options or seed have changed since the run was saved: its last bucket is read again.")
            consumed = 0
        self._state = {**state, "consumed": consumed, "plan": self._plan}
        self._restore(self._state)
        self._counts = self._copy_counts()

    def close(self) -> None:
        """Close the corpus files."""
        self._mixer.close()

    def __iter__(self) -> Iterator[Batch]:
        if not self._training:
            self._state = self._start
        batches = self._prepare(self._state)
        if self._batching.num_workers:
            batches = prefetch(batches, self._batching.num_workers * self._batching.prefetch_factor)
        for prepared in batches:
            self._state, self._counts = prepared.state, prepared.counts
            yield prepared.batch
        if not self._training:
            self._counts = self._copy_counts()

    def _prepare(self, state: Mapping[str, Any]) -> Iterator[_Prepared]:
        """Batches from a state on, each with the state behind it."""
        from onmt_llm.data.batching import collate

        self._restore(state)
        skip = state["consumed"]
        while True:
            start = self._snapshot()
            batches = self._next_bucket()
            if batches is None:
                return
            counts, end = self._copy_counts(), self._snapshot()
            for number, examples in enumerate(batches, start=1):
                if number > skip:
                    batch = collate(examples, pad_id=self._pad_ids[0], src_pad_id=self._pad_ids[1])
                    yield _Prepared(batch, end if number == len(batches) else {**start, "consumed": number}, counts)
            skip = 0

    def _next_bucket(self) -> list[list[Encoded]] | None:
        """The batches of the next bucket; None when the corpora are used up."""
        epochs = self._epochs()
        records = self._draw()
        if not any(records):
            return None
        self._bucket += 1
        kept_before = [corpus.counts.kept for corpus in self._corpora]
        shares = [(corpus, list(self._encode(corpus, own))) for corpus, own in zip(self._corpora, records, strict=True)]
        if not self._audited:
            self._audited = True
            for level, note in audit(shares, self._model, training=self._training):
                logger.log(level, note)
        for corpus, own, kept in zip(self._corpora, records, kept_before, strict=True):
            if own:
                self._check_yield(corpus, corpus.counts.kept > kept)
        if self._training:
            self._report_epochs(epochs)
        return self._cut([example for _, encoded in shares for example in encoded])

    def _draw(self) -> list[list[Record]]:
        """The records of a bucket, by corpus."""
        size = self._batching.bucket_size
        if self._batching.batch_type == "sents":
            size = max(size, self._batch_size)
        records: list[list[Record]] = [[] for _ in self._corpora]
        for _ in range(size):
            drawn = self._mixer.draw()
            if drawn is None:
                break
            records[drawn[0]].append(drawn[1])
        return records

    def _encode(self, corpus: Corpus, records: Sequence[Record]) -> Iterator[Encoded]:
        for index, transform in enumerate(corpus.transforms):
            transform.reseed(_number(self._seed, self._bucket, corpus.name, index))
        for example in corpus.examples(records):
            encoded = corpus.encode(example)
            if encoded is not None:
                yield encoded

    def _check_yield(self, corpus: Corpus, kept: bool) -> None:
        """A corpus of which a whole pass (by all ranks) leaves nothing would be read for ever."""
        epoch = self._epochs()[corpus.name]
        if kept or not self._training:
            self._kept_epochs[corpus.name] = epoch
        elif epoch - self._kept_epochs[corpus.name] > self._mixer.world_size:
            raise DataError(
                f"Corpus '{corpus.name}' must yield at least one example in a whole pass, but yields none: "
                f"{corpus.counts.summary()}.",
                hint="look at its transforms and limits, or write samples with n_sample",
            )

    def _cut(self, examples: list[Encoded]) -> list[list[Encoded]]:
        # within one width by either side, which leaves the least padding on the shorter one
        examples.sort(
            key=lambda example: (example.width, len(example.tgt), 0 if example.src is None else len(example.src))
        )
        batches = [
            examples[start:end]
            for start, end in cut_batches(
                [example.width for example in examples],
                batch_size=self._batch_size,
                batch_type=self._batching.batch_type,
                multiple=self._batching.batch_size_multiple,
            )
        ]
        if self._batching.batch_type == "tokens" and examples and examples[-1].width > self._batch_size:
            log_once(
                f"An example has {examples[-1].width} tokens, more than batch_size {self._batch_size}: "
                "it is a batch of its own (filtertoolong keeps such examples out)."
            )
        if self._training:
            random.Random(_number(self._seed, self._bucket, "order", 0)).shuffle(batches)
        return batches

    def _epochs(self) -> dict[str, int]:
        return {source.name: source.epoch for source in self._mixer.sources}

    def _report_epochs(self, before: Mapping[str, int]) -> None:
        for name, epoch in self._epochs().items():
            if epoch > before[name]:
                logger.info("Epoch %d of corpus '%s'.", epoch, name)

    def _snapshot(self) -> dict[str, Any]:
        """The state at the start of a bucket."""
        return {
            "version": _STATE_VERSION,
            "bucket": self._bucket,
            "consumed": 0,
            "mixer": self._mixer.state_dict(),
            "kept_epochs": dict(self._kept_epochs),
            "counts": {corpus.name: corpus.counts.to_dict() for corpus in self._corpora},
            "plan": self._plan,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._mixer.load_state_dict(state["mixer"])
        self._bucket = state["bucket"]
        self._kept_epochs = dict(state["kept_epochs"])
        for corpus in self._corpora:
            corpus.counts = CorpusCounts.from_dict(state["counts"][corpus.name])

    def _copy_counts(self) -> dict[str, CorpusCounts]:
        return {corpus.name: CorpusCounts.from_dict(corpus.counts.to_dict()) for corpus in self._corpora}


def _pad_id(vocab: Vocab) -> int:
    """Padding is hidden from the model and from the loss, so that any id will do where the model has none for it."""
    return vocab.pad_id if vocab.pad_id is not None else vocab.eos_id or 0


def _number(*parts: int | str) -> int:
    """A number that depends on all parts and on nothing else (not on the process' hash seed)."""
    return random.Random(":".join(map(str, parts))).getrandbits(31)
