"""What a run begins with: a checkpoint (`train_from`), or a new model made of options and vocabulary files."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from onmt_llm.checkpoint.load import expected_shapes, open_base
from onmt_llm.checkpoint.store import Checkpoint, is_own_file
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, ExpansionSpec, SpecialTokens, TokenizerSpec
from onmt_llm.config.data import CorpusConfig, VocabularyConfig
from onmt_llm.config.model import FeatureConfig, ModelConfig
from onmt_llm.config.overrides import TASK_NOUNS, apply_overrides, check_task, differences, with_values
from onmt_llm.config.section import Section
from onmt_llm.config.task import Task
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.model_text import ModelText
from onmt_llm.data.transforms import added_tokens, tokenizer_specs
from onmt_llm.errors import ConfigError, DataError, Problem, raise_problems
from onmt_llm.log import logger
from onmt_llm.nn.block_expansion import deeper
from onmt_llm.text.codec import Codec
from onmt_llm.text.new_vocab import no_vocabulary, padded, padded_to, read_frequent, with_specials
from onmt_llm.text.templates.builtin import TEMPLATES
from onmt_llm.text.templates.message import Template
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.open import open_tokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from onmt_llm.text.vocab import Vocab
from onmt_llm.training.setup.expansion import base_model, resolve_expansion
from onmt_llm.training.state import SavedState, read_state

VOCAB_FILE = "vocab.txt"
SRC_VOCAB_FILE = "src_vocab.txt"
TEMPLATE_FILE = "chat_template.jinja"


@dataclass(frozen=True)
class Before:
    """The vocabularies that a checkpoint's weights were trained with, where the run has others (`update_vocab`)."""

    config: ModelConfig
    vocab: Vocab
    src_vocab: Vocab | None

    @property
    def sides(self) -> tuple[Vocab, Vocab]:
        """Those of source and target."""
        return self.src_vocab or self.vocab, self.vocab


@dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        config: Architecture and text side: becomes the `config.yaml` of the checkpoints that the run writes.
        vocab: Tokens of the decoder.
        src_vocab: Tokens of the encoder, where they differ.
        feature_vocabs: Values of the source tokens' features.
        tokenizer: The model's tokeniser; None where it has none.
        src_tokenizer: The source side's, where it differs.
        template: The model's chat template.
        files: Content of the files that go beside the weights of every checkpoint, by their name there. (The
            checkpoint that they come from may be removed while the run goes on, as `keep_checkpoint` says.)
        weights: Whole model to begin with; None = new weights.
        adapter: LoRA weights, or twins of blocks, to begin with.
        expansion: The blocks that are expanded; None = none.
        saved: Training state to go on from.
        before: The vocabularies of `weights`, where they are not those of the run.
    """

    config: CheckpointConfig
    vocab: Vocab
    src_vocab: Vocab | None = None
    tokenizer: Tokenizer | None = None
    src_tokenizer: Tokenizer | None = None
    template: Template | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    weights: Checkpoint | None = None
    adapter: Checkpoint | None = None
    expansion: ExpansionSpec | None = None
    saved: SavedState | None = None
    feature_vocabs: Sequence[Vocab] = ()
    before: Before | None = None

    @property
    def model(self) -> ModelConfig:
        """The architecture."""
        return self.config.model

    @property
    def stored_model(self) -> ModelConfig:
        """The architecture, with as many rows, and blocks, as `weights` have."""
        if self.before is None:
            return deeper(self.model, self.newly_stacked, sign=-1)
        sizes = self.before.config.model_dump(include={"vocab_size", "src_vocab_size"})
        return self.model.model_copy(update=sizes)

    @property
    def is_newly_expanded(self) -> bool:
        """Whether there are expanded blocks, and they begin with this run."""
        begun = self.adapter or self.weights
        return self.expansion is not None and (begun is None or begun.config.expansion is None)

    @property
    def newly_stacked(self) -> list[str]:
        """Paths of the blocks that get a new one behind them, in the model that `weights` holds."""
        if self.expansion is None or self.expansion.type == "concat" or not self.is_newly_expanded:
            return []
        return self.expansion.blocks

    @property
    def task(self) -> Task:
        """What the pipelines prepare examples for."""
        return "lm" if self.model.is_decoder_only else "seq2seq"

    @property
    def text(self) -> ModelText:
        """The text side, as the data package takes it."""
        return ModelText(
            self.task,
            self.vocab,
            self.src_vocab,
            self.tokenizer,
            self.src_tokenizer,
            self.template,
            self.config.specials.add_bos,
            self.feature_vocabs,
        )

    @property
    def codec(self) -> Codec:
        """The text side, as the engines take it."""
        return Codec(
            self.config,
            self.vocab,
            self.tokenizer or WhitespaceTokenizer(),
            template=self.template,
            src_tokenizer=self.src_tokenizer,
            src_vocab=self.src_vocab,
            feature_vocabs=self.feature_vocabs,
        )

    @property
    def adapter_spec(self) -> AdapterSpec | None:
        """Settings of the adapter to begin with."""
        return None if self.adapter is None else self.adapter.config.adapter


def open_start(config: TrainConfig, options: Mapping[str, Section]) -> Start:
    """What the options ask to begin with.

    Raises:
        CheckpointError: `train_from`, or the base of that adapter, is missing or damaged.
        ConfigError: The architecture written in the options is not that of `train_from`, or something that a new model
            needs is not given.
        DataError: A vocabulary or tokeniser cannot be read.
    """
    if config.start.train_from is None:
        return _new(config, options)
    start = _continued(config, options, config.start.train_from)
    return _updated(start, config, options) if config.start.update_vocab else start


def _continued(config: TrainConfig, options: Mapping[str, Section], path: str) -> Start:
    checkpoint = Checkpoint.open(path)
    weights = open_base(checkpoint) if checkpoint.is_adapter else checkpoint
    codec = checkpoint.codec()
    saved = read_state(checkpoint.path)
    base = base_model(checkpoint, weights)
    expansion = resolve_expansion(
        config.expansion, checkpoint, base, resumed=saved is not None and config.start.reset_optim != "all"
    )
    before = weights.config.model if expansion is None else base
    architecture = apply_overrides(
        before, config.architecture, override=config.start.override_opts, path=checkpoint.path
    )
    _check_overridden(before, architecture, config.architecture, checkpoint.path)
    stacked = expansion if expansion is not None and expansion.type == "stack" else None
    template = _trained_template(config.corpora.data)
    stored = codec.config
    task = check_task(config.start.model_task, stored.model, checkpoint.path)
    logger.info("Task: %s, since %s is %s.", task, checkpoint.path, TASK_NOUNS[task])
    stored = stored.model_copy(
        update={
            "adapter": None,
            "expansion": stacked,
            "model": architecture if stacked is None else deeper(architecture, stacked.blocks),
            "specials": _specials_with_start(stored.specials, config.vocabulary.decoder_start_token, codec.vocab),
            "template": _stored_name(template) or stored.template,
        }
    )
    files = {file.name: _content(file) for file in codec.files()}
    if not config.start.update_vocab:
        for name in ("src_vocab", "tgt_vocab"):
            if getattr(config.vocabulary, name):
                logger.info("%s is not read: %s brings its own vocabulary.", name, checkpoint.path)
        _check_tokenizers(_tokenizer_specs(config, options, lm=task == "lm"), stored, files, checkpoint.path)
    return Start(
        config=stored,
        vocab=Vocab(list(codec.vocab), stored.specials),
        src_vocab=None if codec.src_vocab is codec.vocab else Vocab(list(codec.src_vocab), stored.specials),
        tokenizer=codec.tokenizer,
        src_tokenizer=None if codec.src_tokenizer is codec.tokenizer else codec.src_tokenizer,
        template=codec.template,
        files={**files, **_template_file(template)},
        weights=weights,
        adapter=checkpoint if checkpoint.has_adapter else None,
        expansion=expansion,
        saved=saved,
        feature_vocabs=[Vocab(list(vocab), stored.specials) for vocab in codec.feature_vocabs],
    )


def _check_overridden(stored: ModelConfig, model: ModelConfig, wanted: ModelConfig, path: Path) -> None:
    """Refuse to force another shape on tensors, by the options that ask for it.

    Raises:
        ConfigError: Names each of them.
    """
    if model == stored:
        return
    held = expected_shapes(stored)
    if expected_shapes(model) == held:
        return
    odd = [
        (key, mine, theirs) for key, mine, theirs in differences(stored, wanted) if _reshapes(stored, key, mine, held)
    ]
    raise_problems(
        Problem(
            f"{key} must be {theirs}, since the tensors of {path} have this shape, but is {mine}.",
            hint="override_opts changes what is computed with the tensors, not the tensors: leave the option out",
        )
        for key, mine, theirs in odd or differences(stored, wanted)
    )


def _reshapes(stored: ModelConfig, key: str, value: Any, held: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a model would have other tensors with this option alone."""
    try:
        return expected_shapes(with_values(stored, {key: value})) != held
    except ValidationError:
        return True  # it needs others beside it: a width that the heads do not divide


def _new(config: TrainConfig, options: Mapping[str, Section]) -> Start:
    for sentence in config.missing_base():
        raise ConfigError(f"{sentence}.")
    decision = config.decide_task()
    logger.info("Task: %s, %s.", decision.task, decision.reason)
    config = config.resolved()
    lm = config.architecture.is_decoder_only
    src_spec, tgt_spec = _tokenizer_specs(config, options, lm=lm)
    src_tokenizer, tokenizer = _open(src_spec), _open(tgt_spec)
    specials = _new_specials(config.vocabulary)
    added = added_tokens(config.corpora.data, config.corpora, options)
    wanted = [*config.vocabulary.default_specials, *_roles(specials), *added]
    tokens, src_tokens = _vocabularies(config.vocabulary, tokenizer, src_tokenizer, wanted, lm=lm)
    tokens = _padded(tokens, config.architecture.vocab_size)
    _check_shared(config.architecture, src_tokens)
    sizes = {
        "vocab_size": len(tokens),
        "src_vocab_size": None if src_tokens is None else len(src_tokens),
        "dtype": "fp32",
    }
    feature_vocabs = _feature_vocabs(config, specials)
    features = [_feature(config, len(vocab)) for vocab in feature_vocabs]
    template = _trained_template(config.corpora.data)
    files: dict[str, bytes] = {}
    checkpoint_config = CheckpointConfig(
        model=ModelConfig.model_validate({**config.architecture.model_dump(), **sizes, "src_features": features}),
        tokenizer=_stored_spec(tgt_spec, "", files),
        src_tokenizer=None if src_spec in (None, tgt_spec) else _stored_spec(src_spec, "src_", files),
        specials=specials,
        template=_stored_name(template),
        source="trained from scratch",
        src_feats_defaults=config.corpora.src_feats_defaults,
    )
    return Start(
        config=checkpoint_config,
        vocab=Vocab(tokens, specials),
        src_vocab=None if src_tokens is None else Vocab(src_tokens, specials),
        tokenizer=tokenizer,
        src_tokenizer=None if src_spec in (None, tgt_spec) else src_tokenizer,
        files={**files, **_template_file(template)},
        feature_vocabs=feature_vocabs,
    )


def _feature_vocabs(config: TrainConfig, specials: SpecialTokens) -> list[Vocab]:
    """Values of each source feature, from `<src_vocab>_feat0` and so on, the names that OpenNMT-py gives them."""
    count, path = config.corpora.n_src_feats, config.vocabulary.src_vocab
    if count and path is None:
        raise ConfigError("src_vocab must name a file when n_src_feats is above 0: `<src_vocab>_feat0` is read too.")
    vocabs = []
    for i in range(count):
        values = list(Vocab.read(f"{path}_feat{i}", SpecialTokens()))
        roles = (specials.unk, specials.bos, specials.eos, specials.pad)
        wanted = [t for t in dict.fromkeys([*config.vocabulary.default_specials, *roles]) if t and t not in values]
        vocabs.append(Vocab([*wanted, *values], specials))
    return vocabs


def _feature(config: TrainConfig, values: int) -> FeatureConfig:
    """Shape of a source feature with this many values."""
    if config.architecture.feat_merge == "sum":
        return FeatureConfig(vocab_size=values, size=config.architecture.hidden_size)
    size = config.vocabulary.feat_vec_size or int(values**config.vocabulary.feat_vec_exponent)
    return FeatureConfig(vocab_size=values, size=size)


def _updated(start: Start, config: TrainConfig, options: Mapping[str, Section]) -> Start:
    """A checkpoint with the vocabulary, and the tokeniser, of the options.

    Raises:
        ConfigError: There are adapters or expanded blocks, whose embeddings are not trained.
    """
    if start.expansion is not None:
        raise ConfigError(
            "update_vocab must go with training the whole model, since expanded blocks leave new rows untrained.",
            hint="leave expand_every and expand_blocks out, or change the vocabulary in a run before",
        )
    if start.adapter is not None or config.lora.is_on:
        raise ConfigError(
            "update_vocab must go with training the whole model, since adapters leave new rows untrained.",
            hint="take LoRA out, or merge the adapter into its base first",
        )
    assert start.weights is not None
    lm = start.model.is_decoder_only
    src_spec, tgt_spec = _tokenizer_specs(config, options, lm=lm)
    src_tokenizer, tokenizer = _open(src_spec) or start.src_tokenizer, _open(tgt_spec) or start.tokenizer
    control = {*_roles(start.config.specials), *start.config.stop_tokens}
    if start.template is not None:
        control |= start.template.control_tokens
    wanted = [token for token in start.vocab if token in control]
    wanted += added_tokens(config.corpora.data, config.corpora, options)
    tokens, src_tokens = _vocabularies(config.vocabulary, tokenizer, src_tokenizer, wanted, lm=lm)
    _check_shared(start.model, src_tokens)
    same_tokens = tokens == list(start.vocab)
    same_tokens &= src_tokens == (None if start.src_vocab is None else list(start.src_vocab))
    if same_tokens and not any(_other_tokenizers((src_spec, tgt_spec), start.config, start.files)):
        logger.info("update_vocab: the vocabulary is that of %s already.", start.weights.path)
        return start
    files = dict(start.files)
    update: dict[str, Any] = {
        "model": start.model.model_copy(
            update={"vocab_size": len(tokens), "src_vocab_size": None if src_tokens is None else len(src_tokens)}
        )
    }
    if tgt_spec is not None:
        for old in (start.config.tokenizer, start.config.src_tokenizer):
            files.pop((old and old.file) or "", None)
        update["tokenizer"] = _stored_spec(tgt_spec, "", files)
        update["src_tokenizer"] = None if src_spec in (None, tgt_spec) else _stored_spec(src_spec, "src_", files)
        src_tokenizer = None if update["src_tokenizer"] is None else src_tokenizer
    specials = start.config.specials
    return replace(
        start,
        config=start.config.model_copy(update=update),
        vocab=Vocab(tokens, specials),
        src_vocab=None if src_tokens is None else Vocab(src_tokens, specials),
        tokenizer=tokenizer,
        src_tokenizer=src_tokenizer,
        files=files,
        before=Before(start.weights.config.model, start.vocab, start.src_vocab),
    )


def _tokenizer_specs(
    config: TrainConfig, options: Mapping[str, Section], *, lm: bool
) -> tuple[TokenizerSpec | None, TokenizerSpec | None]:
    """Tokenisers of source and target that the transforms name; a language model has that of the source alone."""
    src_spec, tgt_spec = tokenizer_specs(config.corpora.model_transforms, options)
    return (None, src_spec) if lm else (src_spec, tgt_spec)


def _check_shared(model: ModelConfig, src_tokens: Sequence[str] | None) -> None:
    if src_tokens is not None and model.share_embeddings:
        raise ConfigError("share_embeddings must go with one vocabulary for both sides: set share_vocab: true.")


def _open(spec: TokenizerSpec | None) -> Tokenizer | None:
    return None if spec is None else open_tokenizer(spec, Path())


def _stored_spec(spec: TokenizerSpec | None, prefix: str, files: dict[str, bytes]) -> TokenizerSpec:
    """`spec` with its file beside the checkpoint's weights; the file is added to `files`."""
    if spec is None:
        return TokenizerSpec()
    if spec.file is None:
        return spec
    name = prefix + Path(spec.file).name
    while name in files or is_own_file(name) or name in (VOCAB_FILE, SRC_VOCAB_FILE, TEMPLATE_FILE):
        name = f"tokenizer_{name}"
    files[name] = _content(Path(spec.file))
    return spec.model_copy(update={"file": name})


def _other_tokenizers(
    specs: tuple[TokenizerSpec | None, TokenizerSpec | None], stored: CheckpointConfig, files: Mapping[str, bytes]
) -> Iterator[tuple[TokenizerSpec, TokenizerSpec]]:
    """The tokenisers of source and target that the options name and that are not the model's, each with the model's."""
    own = (stored.src_tokenizer or stored.tokenizer, stored.tokenizer)
    for named, mine in zip(specs, own, strict=True):
        if named is None:
            continue
        content = None if named.file is None else _content(Path(named.file))
        same = (named.kind, named.options) == (mine.kind, mine.options)
        if not same or content != (None if mine.file is None else files[mine.file]):
            yield named, mine


def _check_tokenizers(
    specs: tuple[TokenizerSpec | None, TokenizerSpec | None],
    stored: CheckpointConfig,
    files: Mapping[str, bytes],
    path: Path,
) -> None:
    """Refuse to train with other pieces than those that the model knows, and that its checkpoints go on to use.

    A tokeniser of another kind, or with other options, may give the same pieces (a tokenizer.json of a SentencePiece
    model): a warning.
    """
    for named, mine in _other_tokenizers(specs, stored, files):
        if (named.kind, named.options) == (mine.kind, mine.options):
            raise ConfigError(
                f"The tokeniser must be that of {path}, {mine.file or mine.kind}, but {named.file} has other content.",
                hint=f"name {path / str(mine.file)}, or change the vocabulary with update_vocab: true",
            )
        logger.warning(
            "The transforms tokenise by %s (%s), but %s by %s, which checkpoints keep: both must give the same tokens.",
            *(named.kind, named.file or named.options, path, mine.kind),
        )


def _vocabularies(
    vocabulary: VocabularyConfig,
    tokenizer: Tokenizer | None,
    src_tokenizer: Tokenizer | None,
    wanted: Sequence[str],
    *,
    lm: bool,
) -> tuple[list[str], list[str] | None]:
    """The decoder's tokens, and the encoder's where they differ: with the `wanted` ones, cut and padded."""
    src, tgt = vocabulary.src_vocab, vocabulary.tgt_vocab
    src_size, src_least = vocabulary.src_vocab_size, vocabulary.src_words_min_frequency
    src_tokens = None
    if lm or vocabulary.share_vocab:
        if src and tgt and not _same_content(src, tgt):
            why = "a language model has one vocabulary" if lm else "share_vocab makes one of both"
            logger.warning("tgt_vocab (%s) is not read: %s, src_vocab (%s).", tgt, why, src)
        tokens = _tokens("src_vocab", src or tgt, tokenizer or src_tokenizer, src_least)
        tokens = with_specials(tokens, wanted, size=src_size)
    else:
        tokens = _tokens("tgt_vocab", tgt, tokenizer, vocabulary.tgt_words_min_frequency)
        tokens = with_specials(tokens, wanted, size=vocabulary.tgt_vocab_size)
        src_tokens = _tokens("src_vocab", src, src_tokenizer or tokenizer, src_least)
        src_tokens = padded(with_specials(src_tokens, wanted, size=src_size), vocabulary.vocab_size_multiple)
    tokens = padded(tokens, vocabulary.vocab_size_multiple)
    return tokens, None if src_tokens == tokens else src_tokens


def _same_content(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def _tokens(option: str, path: str | None, tokenizer: Tokenizer | None, min_frequency: int) -> list[str]:
    if path is not None:
        return read_frequent(path, min_frequency=min_frequency)
    tokens = None if tokenizer is None else tokenizer.vocab_tokens()
    if tokens is None:
        raise no_vocabulary(option)
    return tokens


def _roles(specials: SpecialTokens) -> list[str]:
    return [token for token in specials.model_dump().values() if isinstance(token, str)]


def _new_specials(vocabulary: VocabularyConfig) -> SpecialTokens:
    """Roles of the special tokens of a new vocabulary, by their usual names."""
    given = vocabulary.default_specials

    def first(*names: str) -> str | None:
        return next((name for name in names if name in given), None)

    return SpecialTokens(
        unk=first("<unk>"),
        bos=vocabulary.decoder_start_token or first("<s>") or "<s>",
        eos=first("</s>") or "</s>",
        pad=first("<blank>", "<pad>"),
    )


def _specials_with_start(specials: SpecialTokens, start: str | None, vocab: Vocab) -> SpecialTokens:
    if start in (None, specials.bos):
        return specials
    if start not in vocab:
        raise ConfigError(f"decoder_start_token must be in the checkpoint's vocabulary, but '{start}' is not.")
    logger.info("decoder_start_token: '%s' instead of the checkpoint's '%s'.", start, specials.bos)
    return specials.model_copy(update={"bos": start})


def _padded(tokens: list[str], rows: int) -> list[str]:
    """Tokens up to `vocab_size`, where it is given."""
    if rows and rows < len(tokens):
        raise ConfigError(f"vocab_size must be at least the size of the vocabulary, {len(tokens)}, but is {rows}.")
    return padded_to(tokens, rows) if rows else tokens


def _trained_template(corpora: Mapping[str, CorpusConfig]) -> str | None:
    """The chat template that all corpora of JSON or rows name: what the model learns is what engines must use."""
    named = {corpus.template for corpus in corpora.values() if corpus.has_keys}
    return named.pop() if len(named) == 1 else None


def _stored_name(template: str | None) -> str | None:
    return template if template is None or template in TEMPLATES else TEMPLATE_FILE


def _template_file(template: str | None) -> dict[str, bytes]:
    return {TEMPLATE_FILE: _content(Path(template))} if template and template not in TEMPLATES else {}


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} belongs to the model, but cannot be read ({error.strerror or error}).") from error
