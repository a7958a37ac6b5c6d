"""`Corpus`: read, transform and encode the examples of one entry of `data:`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from onmt_llm.config.learning import UNPAIRED
from onmt_llm.data.example import Encoded, Encoder, Example
from onmt_llm.data.parsing import preferences
from onmt_llm.data.parsing.alignment import align_tokens, check_alignable
from onmt_llm.data.parsing.parser import EMPTY, LOW_SCORE, ExampleParser
from onmt_llm.data.readers import BadRecord, IndexCache, Reader, Record, ShuffledReader, open_reader
from onmt_llm.data.readers.files import files_of
from onmt_llm.data.selection import selected_reader
from onmt_llm.data.selection.select import WHERE
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.token_shards.open import open_tokens
from onmt_llm.data.token_shards.records import TokenDecoder
from onmt_llm.data.transforms.build import added_tokens, build_transforms
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import logger
from onmt_llm.registry import load_plugins
from onmt_llm.text.codec import Codec
from onmt_llm.text.templates.message import Template

NOTHING_TRAINED = "nothing_trained"
_MARK = b"\xef\xbb\xbf"
_LATER_MARK = b"\n" + _MARK
"""A byte-order mark at the start of a later line; readers skip the one at the start of a file."""


class Corpus:
    """Reads, transforms and encodes the examples of one corpus; what happens to them is added to the caller's counts.

    Args:
        name: Its name in `data:`.
        spec: What happens to it.
        shuffled: Whether the records may be shuffled, if the options ask for it.

    Attributes:
        config: Its options.
        codec: The model's, for the languages of the corpus.
        reader: Reader of its records.
        transforms: Its transforms, in order.
        control_tokens: Tokens that are never produced from text and are not part of a model's answer.
        trained: Loss mask of conversations.
        masks_prompts: It consists of plain text, and the options exclude prompts from the loss.
        text_tokens: Tokens that its transforms insert into the text.

    Raises:
        ConfigError: Paths, transforms or template are invalid.
        DataError: A tokeniser model cannot be read.
    """

    def __init__(self, name: str, spec: PipelineSpec, *, shuffled: bool = False) -> None:
        config, data, codec = spec.corpora[name], spec.data, spec.codec_of(name)
        self.name = name
        self.config = config
        self.codec = codec
        self.weight = config.weight
        tokens = open_tokens(name, spec) if config.path_packed or config.path_tokens else None
        self.reader: Reader
        if tokens is None:
            cache = IndexCache(Path(data.index_cache) if data.index_cache else None)
            named = config.template or data.template
            template = codec.corpus_template(named) if named else codec.template
            variables = template.inputs if template else ()
            every = open_reader(name, config, cache=cache, max_bytes=data.max_record_bytes, variables=variables)
            self.reader = selected_reader(name, every, config, cache)
        else:
            self.reader = tokens.reader
        if shuffled and (config.shuffle or data.shuffle) == "global":
            self.reader = ShuffledReader(name, self.reader, spec.seed)
        self._level = data.skip_empty_level
        self._skip_bad = data.on_bad_line == "skip"
        self._objective = data.objective
        self._logged: set[str] = set()
        self._encoder = Encoder(codec)
        self.trained = spec.loss_mask(name)
        self._vocabs = (codec.src_vocab, codec.vocab)
        self._align_words = config.align_unit == "words"
        self._alignments: dict[Path | None, Path] = {}
        self._decoder = None if tokens is None else tokens.decoder
        self.transforms: list[Transform] = []
        self.text_tokens: list[str] = []
        self.masks_prompts = bool(data.zero_out_prompt_loss) and not config.has_keys and tokens is None
        if self._decoder is None:
            self._open_text(spec)
        else:
            self.control_tokens = codec.control_tokens(None)

    def _open_text(self, spec: PipelineSpec) -> None:
        name, data, codec = self.name, spec.data, self.codec
        config = spec.corpora[name]
        self._parser = ExampleParser(
            name, config, data, task=codec.task, template=codec.template, open_template=codec.corpus_template
        )
        names = data.transforms_of(config)
        _check_features(name, names, data.n_src_feats, codec)
        context = TransformContext(
            codec,
            template=self._parser.template,
            training=spec.training,
            zero_out_prompt_loss=bool(data.zero_out_prompt_loss),
            tokenizer=codec.tokenizer,
            src_tokenizer=codec.src_tokenizer,
        )
        self.control_tokens = context.control_tokens
        self.transforms = build_transforms(names, data.transform_options, config, context)
        self.text_tokens = added_tokens({name: config}, data, in_text=True)
        _check_order(name, self.reader, self.transforms)
        if config.path_align:
            self._alignments.update(zip(files_of(config, "path_src"), files_of(config, "path_align"), strict=True))
            check_alignable(name, self.transforms)
        self.transforms = [transform for transform in self.transforms if transform.name not in spec.without]
        if spec.text_only:
            self.transforms = list(takewhile(lambda transform: not transform.tokenizes, self.transforms))

    @property
    def holds_tokens(self) -> bool:
        """Whether the corpus was tokenised in advance, so that there is no text to transform."""
        return self._decoder is not None

    def examples(self, records: Sequence[Record], counts: CorpusCounts) -> list[Example]:
        """Parse and transform records; dropped examples are counted."""
        if self._decoder is not None:
            decoded = self._decoder(records, counts)
            return [
                Example(src=[], corpus=self.name, line=record.line, path=record.paths[0], encoded=encoded)
                for record, encoded in decoded
            ]
        counts.add_read(records)
        examples = [example for record in records for example in self.parse(record, counts)]
        change = self._transformed if self._objective == "sft" else self._with_preferences
        return change(examples, counts)

    def _with_preferences(self, examples: list[Example], counts: CorpusCounts) -> list[Example]:
        """Transform every answer separately; a pair is dropped if one of its answers is."""
        answers = preferences.split_answers(examples, paired=self._objective not in UNPAIRED)
        counts.made += len(answers) - len(examples)
        pairs, alone = preferences.join_pairs(self._transformed(answers, counts))
        counts.dropped.update([preferences.OTHER_DROPPED] * alone)
        return pairs

    def _transformed(self, examples: list[Example], counts: CorpusCounts) -> list[Example]:
        for transform in self.transforms:
            examples = self.apply(transform, examples, counts)
        return examples

    def apply(self, transform: Transform, examples: Sequence[Example], counts: CorpusCounts) -> list[Example]:
        """Apply a transform; the examples that it drops, adds and truncates are counted."""
        changed = transform.batch(examples)
        counts.dropped.update(transform.dropped)
        counts.made += transform.made
        counts.truncated += transform.truncated
        transform.dropped.clear()
        transform.made = transform.truncated = 0
        return changed

    def parse(self, record: Record, counts: CorpusCounts) -> list[Example]:
        """The examples of a record, without transforms; a skipped record has none and is counted."""
        for part in record.parts:
            # searching for one byte is faster than for the whole mark
            if _MARK[0] in part and (part.startswith(_MARK) or _LATER_MARK in part):
                self._suspect("byte_order_mark", record.where, counts)
                break
        try:
            examples, skipped = self._parser(record)
        except BadRecord as error:
            self._bad(error, counts)
            return []
        if skipped == EMPTY:
            self._skip_empty(record.where, counts)
        elif skipped:
            self._skip(skipped, record.where, counts, quiet=skipped in (LOW_SCORE, WHERE))
        else:
            counts.made += len(examples) - 1
        return examples

    def encode(self, example: Example, counts: CorpusCounts) -> Encoded | None:
        """Encode an example; returns None, and counts it, if it is empty or has no trained token."""
        others = [] if example.rejected is None else [example.rejected]
        found = [encoded for each in (example, *others) if (encoded := self._encode(each, counts)) is not None]
        if len(found) <= len(others):
            counts.dropped.update([preferences.OTHER_DROPPED] * len(found))
            return None
        if others:
            found[0].rejected = found[1]
        for encoded in found:
            counts.keep(encoded, encoded.num_trained)
        return found[0]

    def _encode(self, example: Example, counts: CorpusCounts) -> Encoded | None:
        if example.align is not None and not self._align(example, counts):
            return None
        encoded = example.encoded or self._encoder(example)
        if encoded is None:
            self._skip_empty(f"{example.path}:{example.line}", counts)
            return None
        if encoded.num_trained == 0:
            counts.dropped[NOTHING_TRAINED] += 1
            return None
        encoded.chosen = example.chosen
        return encoded

    def raw(self, record: Record) -> list[Example]:
        """The examples of a record, without transforms and without counting; none if it is skipped."""
        return self._parser(record).examples if self._decoder is None else self._token_texts(self._decoder, record)

    @property
    def template(self) -> Template | None:
        """The chat template; None if there is none (yet)."""
        return None if self._decoder is not None else self._parser.template

    def _token_texts(self, decoder: TokenDecoder, record: Record) -> list[Example]:
        """The first example of a record of tokens, with the tokens' texts."""
        encoded = next(decoder([record], CorpusCounts()), (record, None))[1]
        if encoded is None:
            return []
        return [Example.of_tokens(encoded, self._vocabs, corpus=self.name, line=record.line)]

    def _align(self, example: Example, counts: CorpusCounts) -> bool:
        """Check the alignment, after conversion from words to tokens if needed.

        Returns:
            False if the example is skipped, since the alignment names a token or word that does not exist.
        """
        try:
            align_tokens(example, self.transforms, words=self._align_words)
        except DataError as error:
            sentence = f"{self._alignments.get(example.path)}:{example.line} {error.message}"
            self._bad(BadRecord(sentence, reason="bad_alignment", hint=error.hint), counts)
            return False
        return True

    def _bad(self, error: BadRecord, counts: CorpusCounts) -> None:
        if not self._skip_bad:
            raise error
        self._skip(error.reason, error.message, counts)

    def _suspect(self, what: str, where: str, counts: CorpusCounts) -> None:
        """Count a suspicious record; log the first one."""
        counts.suspect[what] += 1
        if what not in self._logged:
            self._logged.add(what)
            logger.warning(
                "Corpus '%s' has a %s where no file begins, which is read as text, and counted: %s ...",
                *(self.name, what.replace("_", "-"), where),
            )

    def _skip_empty(self, where: str, counts: CorpusCounts) -> None:
        if self._level == "error":
            raise DataError(
                f"Corpus '{self.name}' must have no empty example, but {where} is one.",
                hint="skip_empty_level: warning skips and counts them",
            )
        self._skip(EMPTY, where, counts, quiet=self._level == "silent")

    def _skip(self, reason: str, example: str, counts: CorpusCounts, *, quiet: bool = False) -> None:
        """Count a skipped example; log the first one."""
        counts.dropped[reason] += 1
        if not quiet and reason not in self._logged:
            self._logged.add(reason)
            what = reason.replace("_", " ")
            logger.warning(
                "Corpus '%s' has %s examples, which are skipped and counted: %s ...", self.name, what, example
            )


def open_corpora(spec: PipelineSpec, *, shuffled: bool = False) -> list[Corpus]:
    """Open all corpora in order; files are not checked yet.

    Args:
        spec: What happens to them.
        shuffled: Whether training corpora are read in random order if configured (`shuffle: global`).

    Raises:
        ConfigError: There is no corpus, or the configuration of one is invalid.
        DataError: A tokeniser model cannot be read.
    """
    load_plugins(spec.data.plugins)  # a worker process has not loaded them yet
    if not spec.corpora:
        raise ConfigError("`data` must name at least one corpus, but names none.")
    return [Corpus(name, spec, shuffled=shuffled and spec.training) for name in spec.corpora]


def _check_features(corpus: str, transforms: Sequence[str], count: int, codec: Codec) -> None:
    """Refuse transforms that lose the features of words."""
    if count != len(codec.feature_vocabs):
        raise ConfigError(
            f"n_src_feats must be the number of source features of the model, {len(codec.feature_vocabs)}, "
            f"but is {count}."
        )
    if count and "inferfeats" not in transforms:
        raise ConfigError(
            f"The transforms of corpus '{corpus}' must include inferfeats, behind the tokeniser, since n_src_feats is "
            f"{count}."
        )
    rewriting = next((name for name in transforms if TRANSFORMS.get(name).rewrites), None)
    if count and rewriting:
        raise ConfigError(
            f"The transforms of corpus '{corpus}' must leave its words in their places, since they carry features "
            f"(n_src_feats {count}), but {rewriting} does not."
        )


def _check_order(corpus: str, reader: Reader, transforms: Sequence[Transform]) -> None:
    """Refuse a random order of records that a transform joins."""
    joining = next((transform.name for transform in transforms if transform.needs_neighbours), None)
    if joining and isinstance(reader, ShuffledReader):
        raise ConfigError(
            f"Corpus '{corpus}' must be read in order, since its transform '{joining}' joins successive lines, but "
            "shuffle is 'global'.",
            hint="shuffle: none, for this corpus",
        )
