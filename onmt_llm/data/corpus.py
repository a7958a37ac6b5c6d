"""`Corpus`: one entry of `data:` with all that happens to its examples before they are batched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.config.section import Section
from onmt_llm.data.alignment import check_alignable, check_pairs, to_tokens
from onmt_llm.data.counts import CorpusCounts
from onmt_llm.data.encoding import Encoded, Encoder
from onmt_llm.data.example import Example, Segment
from onmt_llm.data.model_text import ModelText
from onmt_llm.data.readers import Reader, Record, open_reader
from onmt_llm.data.records import ExampleParser
from onmt_llm.data.token_records import TokenDecoder
from onmt_llm.data.tokens import open_tokens
from onmt_llm.data.transforms import Transform, TransformContext, build_transforms, transform_class
from onmt_llm.data.transforms.tokenize import Tokenize
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import logger

EMPTY = "empty"
NOTHING_TRAINED = "nothing_trained"


class Corpus:
    """Reads, transforms and counts the examples of one corpus.

    Args:
        name: Its name in `data:`.
        config: Its own options.
        data: Those of all corpora.
        options: Sections of the transforms.
        model: The model that it is prepared for.
        training: Random transforms act.

    Attributes:
        reader: Where its records come from.
        transforms: What happens to its examples, in order.
        control_tokens: Tokens that no text becomes; they are not part of what a model says.
        counts: What has happened so far.

    Raises:
        ConfigError: Paths, transforms or template are not as they must be.
        DataError: A tokeniser model cannot be read.
    """

    def __init__(
        self,
        name: str,
        config: CorpusConfig,
        *,
        data: DataConfig,
        options: Mapping[str, Section],
        model: ModelText,
        training: bool,
    ) -> None:
        self.name = name
        self.weight = config.weight
        tokens = open_tokens(name, config, data=data, options=options, model=model, training=training)
        self.reader: Reader = open_reader(name, config) if tokens is None else tokens.reader
        self.counts = CorpusCounts()
        self._level = data.skip_empty_level
        self._said_empty = False
        self._encoder = Encoder(model)
        self._vocabs = (model.src_vocab or model.vocab, model.vocab)
        self._align_words = config.align_unit == "words"
        self._decoder = None if tokens is None else tokens.decoder
        self.transforms: list[Transform] = []
        self.control_tokens = model.control_tokens(None)
        if self._decoder is None:
            self._open_text(config, data, options, model, training)

    def _open_text(
        self, config: CorpusConfig, data: DataConfig, options: Mapping[str, Section], model: ModelText, training: bool
    ) -> None:
        name = self.name
        self._parser = ExampleParser(
            name,
            config,
            paths=self.reader.paths,
            task=model.task,
            template=model.template,
            open_template=model.open_template,
            n_src_feats=data.n_src_feats,
            src_feats_defaults=data.src_feats_defaults,
            zero_out_prompt_loss=data.zero_out_prompt_loss,
        )
        names = data.transforms if config.transforms is None else config.transforms
        _check_features(name, names, data.n_src_feats, model)
        context = _context(model, self._parser, data, training)
        self.control_tokens = context.control_tokens
        self.transforms = build_transforms(names, options, config, context)
        if config.path_align:
            check_alignable(name, self.transforms)

    @property
    def holds_tokens(self) -> bool:
        """It was tokenised beforehand: there is no text, and nothing to transform."""
        return self._decoder is not None

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """The examples of records, transformed; what is dropped is counted."""
        if self._decoder is not None:
            decoded = self._decoder(records, self.counts)
            return [Example(src=[], corpus=self.name, line=line, encoded=encoded) for line, encoded in decoded]
        self.counts.read += len(records)
        examples = [example for record in records if (example := self._parse(record)) is not None]
        for transform in self.transforms:
            examples = transform.batch(examples)
            self.counts.dropped.update(transform.dropped)
            self.counts.truncated += transform.truncated
            transform.dropped.clear()
            transform.truncated = 0
        return examples

    def encode(self, example: Example) -> Encoded | None:
        """An example as ids; None, and counted, where it is empty or the loss would see nothing of it."""
        if example.align is not None:
            self._align(example)
        encoded = example.encoded or self._encoder(example)
        if encoded is None:
            self._skip_empty(example.line)
            return None
        trained = encoded.num_trained
        if trained == 0:
            self.counts.dropped[NOTHING_TRAINED] += 1
            return None
        self.counts.keep(encoded, trained)
        return encoded

    def raw(self, record: Record) -> Example | None:
        """A record as an example before the transforms; None, and not counted, when it is empty."""
        return self._parser(record) if self._decoder is None else self._spelled(self._decoder, record)

    def _spelled(self, decoder: TokenDecoder, record: Record) -> Example | None:
        """The first example of a record of tokens, with the tokens' texts."""
        _, encoded = next(decoder([record], CorpusCounts()), (0, None))
        if encoded is None:
            return None
        sides = [side for side in (encoded.src, encoded.tgt) if side is not None]
        src, *tgt = [
            [Segment(tokens=[vocab[id_] for id_ in ids.tolist()])]
            for ids, vocab in zip(sides, self._vocabs[-len(sides) :], strict=True)
        ]
        return Example(src=src, tgt=tgt[0] if tgt else [], corpus=self.name, line=record.line)

    def _align(self, example: Example) -> None:
        """Check the alignment against the tokens that it is about, and carry it over from words where it counts them.

        Raises:
            DataError: It names a token, or word, that is not there.
        """
        try:
            if self._align_words:
                example.align = to_tokens(example, next(t for t in self.transforms if isinstance(t, Tokenize)))
            check_pairs(example)
        except DataError as error:
            where = f"{self.reader.paths[-1]}:{example.line}"
            raise DataError(f"{where} {error.message}", hint=error.hint) from error

    def _parse(self, record: Record) -> Example | None:
        example = self._parser(record)
        if example is None:
            self._skip_empty(record.line)
        return example

    def _skip_empty(self, line: int) -> None:
        self.counts.dropped[EMPTY] += 1
        where = f"{self.reader.paths[0]}:{line}"
        if self._level == "error":
            raise DataError(
                f"Corpus '{self.name}' must have no empty example, but {where} is one.",
                hint="skip_empty_level: warning skips and counts them",
            )
        if self._level == "warning" and not self._said_empty:
            self._said_empty = True
            logger.warning("Corpus '%s' has empty examples, which are skipped and counted: %s ...", self.name, where)


def open_corpora(
    corpora: Mapping[str, CorpusConfig],
    *,
    data: DataConfig,
    options: Mapping[str, Section],
    model: ModelText,
    training: bool,
) -> list[Corpus]:
    """All corpora in order, without a look at their files yet.

    Raises:
        ConfigError: There is none, or one is not configured as it must be.
        DataError: A tokeniser model cannot be read.
    """
    if not corpora:
        raise ConfigError("`data` must name at least one corpus, but names none.")
    return [
        Corpus(name, config, data=data, options=options, model=model, training=training)
        for name, config in corpora.items()
    ]


def _check_features(corpus: str, transforms: Sequence[str], count: int, model: ModelText) -> None:
    if count != len(model.feature_vocabs):
        raise ConfigError(
            f"n_src_feats must be the number of source features of the model, {len(model.feature_vocabs)}, "
            f"but is {count}."
        )
    if count and "inferfeats" not in transforms:
        raise ConfigError(
            f"The transforms of corpus '{corpus}' must include inferfeats, behind the tokeniser, since n_src_feats is "
            f"{count}."
        )
    rewriting = next((name for name in transforms if transform_class(name).rewrites), None)
    if count and rewriting:
        raise ConfigError(
            f"The transforms of corpus '{corpus}' must leave its words in their places, since they carry features "
            f"(n_src_feats {count}), but {rewriting} does not."
        )


def split_corpora(corpora: Mapping[str, CorpusConfig]) -> tuple[dict[str, CorpusConfig], dict[str, CorpusConfig]]:
    """Corpora for training, and those for validation: `valid` and `valid_*`.

    Raises:
        ConfigError: There is none for training.
    """
    valid = {name: corpus for name, corpus in corpora.items() if name == "valid" or name.startswith("valid_")}
    train = {name: corpus for name, corpus in corpora.items() if name not in valid}
    if not train:
        raise ConfigError(
            "`data` must name at least one corpus for training, but names "
            + (f"only {', '.join(valid)}, for validation." if valid else "none.")
        )
    return train, valid


def _context(model: ModelText, parser: ExampleParser, data: DataConfig, training: bool) -> TransformContext:
    return TransformContext(
        task=model.task,
        training=training,
        add_bos=model.add_bos,
        bos=model.bos,
        control_tokens=model.control_tokens(parser.template),
        zero_out_prompt_loss=bool(data.zero_out_prompt_loss),
        tokenizer=model.tokenizer,
        src_tokenizer=model.src_tokenizer,
        vocab=model.vocab,
        src_vocab=model.src_vocab,
    )
