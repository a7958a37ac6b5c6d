"""The codec that a run trains with: of a new model, of a checkpoint, or of a checkpoint with a new vocabulary.

A new model's text side follows from the options (special tokens, chat template), the vocabulary files and the
tokenisers that the transforms name. It is the same codec as the one that is opened from the run's first checkpoint.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmt_llm.config.checkpoint import CheckpointConfig, SpecialTokens, TokenizerSpec
from onmt_llm.config.data import DataConfig, VocabularyConfig
from onmt_llm.config.model import FeatureConfig, ModelConfig, Task
from onmt_llm.config.train import TrainConfig
from onmt_llm.data.run_template import run_template
from onmt_llm.data.run_tokenizers import (
    TEMPLATE_FILE,
    check_tokenizers,
    file_content,
    other_tokenizers,
    run_tokenizer_specs,
    splits_at_spaces,
    stored_spec,
    tokenizer_update,
)
from onmt_llm.data.spec import split_corpora
from onmt_llm.data.transforms.build import added_tokens
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec, check_template, model_template
from onmt_llm.text.languages import no_start, with_start
from onmt_llm.text.new_vocab import no_vocabulary, padded, padded_to, read_frequent, with_specials
from onmt_llm.text.templates.builtin import TEMPLATES, get_template
from onmt_llm.text.templates.message import Template
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.control_guard import unguarded
from onmt_llm.text.tokenizers.open import open_tokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from onmt_llm.text.vocab import Vocab


@dataclass(frozen=True)
class RunCodec:
    """The codec of a run, and its files.

    Attributes:
        codec: Its `config` becomes the `config.yaml` of the checkpoints that the run writes.
        files: Content of the files that go beside the weights of every checkpoint, by their name there. (The
            checkpoint that they come from may be removed during the run, as `keep_checkpoint` says.)
    """

    codec: Codec
    files: Mapping[str, bytes]


def new_codec(config: TrainConfig) -> RunCodec:
    """The codec of a new model.

    Raises:
        ConfigError: Something that a new model needs is not given, or the vocabulary lacks a token that it needs.
        DataError: A vocabulary, tokeniser or template cannot be read.
    """
    for sentence in config.missing_base():
        raise ConfigError(f"{sentence}.")
    decision = config.decide_task()
    logger.info("Task: %s, %s.", decision.task, decision.reason)
    config = config.resolved()
    lm = config.architecture.is_decoder_only
    src_spec, tgt_spec = run_tokenizer_specs(config.corpora, lm=lm)
    src_tokenizer, tokenizer = _open(src_spec), _open(tgt_spec)
    specials = _new_specials(config.vocabulary, lm=lm)
    opened = [each for each in (src_tokenizer, tokenizer) if each is not None] or [WhitespaceTokenizer()]
    added = added_tokens(config.corpora.data, config.corpora, tokenizers=opened)
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
    template = run_template(config.corpora, own=None, task=decision.task)
    files: dict[str, bytes] = {}
    checkpoint_config = CheckpointConfig(
        model=ModelConfig.model_validate({**config.architecture.model_dump(), **sizes, "src_features": features}),
        tokenizer=stored_spec(tgt_spec, "", files),
        src_tokenizer=None if src_spec in (None, tgt_spec) else stored_spec(src_spec, "src_", files),
        specials=specials,
        template=_stored_name(template),
        source="trained from scratch",
        src_feats_defaults=config.corpora.src_feats_defaults,
    )
    vocab, tokenizer = Vocab(tokens, specials), tokenizer or WhitespaceTokenizer()
    codec = Codec(
        checkpoint_config,
        vocab,
        tokenizer,
        template=_open_template(template, checkpoint_config, tokenizer, vocab),
        src_tokenizer=None if src_spec in (None, tgt_spec) else src_tokenizer,
        src_vocab=None if src_tokens is None else Vocab(src_tokens, specials),
        feature_vocabs=feature_vocabs,
    )
    return RunCodec(codec, {**files, **_template_file(template)})


def counting_codec(vocabulary: VocabularyConfig, data: DataConfig, task: Task) -> Codec:
    """The codec for counting tokens before there is a vocabulary: it contains only the control tokens."""
    specials = SpecialTokens(bos=vocabulary.decoder_start_token or "<s>")
    corpora, _ = split_corpora(data.data)
    names = {data.template, *(corpus.template for corpus in corpora.values())}
    templates = [get_template(name, specials=specials) for name in names if name]
    control = sorted({token for template in templates for token in template.control_tokens})
    roles = [token for token in (specials.unk, specials.bos, specials.eos) if token]
    vocab = Vocab(list(dict.fromkeys([*roles, *control])), specials)
    model = ModelConfig(encoder_layers=0 if task == "lm" else 1)
    config = CheckpointConfig(model=model, specials=specials)
    return Codec(config, vocab, WhitespaceTokenizer(), feature_vocabs=[vocab] * data.n_src_feats)


def checkpoint_codec(config: TrainConfig, codec: Codec, stored: CheckpointConfig, *, path: Path) -> RunCodec:
    """The codec of a checkpoint, with the start token and the template of the options.

    Args:
        config: All options of the run.
        codec: The checkpoint's.
        stored: Its `config.yaml`, with the architecture of the run.
        path: The checkpoint, for messages.

    Raises:
        ConfigError: The options name another tokeniser than the checkpoint's, or a token that it does not know.
        DataError: A file of the checkpoint, or the template, cannot be read.
    """
    template = run_template(config.corpora, own=stored.template, task=codec.task)
    stored = with_start(stored, config.vocabulary.decoder_start_token, codec.vocab)
    stored = stored.model_copy(update={"template": _stored_name(template) or stored.template})
    specials = stored.specials
    files = {file.name: file_content(file) for file in codec.files()}
    tokenizer = unguarded(codec.tokenizer)
    src_tokenizer = None if codec.shares_tokenizer else codec.src_tokenizer
    if not config.start.update_vocab:
        for name in ("src_vocab", "tgt_vocab"):
            if getattr(config.vocabulary, name):
                logger.info("%s is not read: %s brings its own vocabulary.", name, path)
        src_spec, tgt_spec = run_tokenizer_specs(config.corpora, lm=stored.model.is_decoder_only)
        if tgt_spec is not None and splits_at_spaces(stored):
            logger.warning(
                "%s has no tokeniser: its texts are tokenised by %s (%s), which the checkpoints of this run keep.",
                *(path, tgt_spec.kind, tgt_spec.file or tgt_spec.options),
            )
            stored = stored.model_copy(update=tokenizer_update(stored, files, src_spec, tgt_spec))
            tokenizer = open_tokenizer(tgt_spec, Path())
            src_tokenizer = None if stored.src_tokenizer is None else _open(src_spec)
        else:
            hint = f"name {path / str(stored.tokenizer.file)}, or change the vocabulary with update_vocab: true"
            check_tokenizers((src_spec, tgt_spec), stored, files, path, hint=hint)
    vocab = _with_specials(codec.vocab, specials)
    layout = codec.template if template is None else _open_template(template, stored, tokenizer, vocab)
    return RunCodec(
        Codec(
            stored,
            vocab,
            tokenizer,
            template=layout,
            src_tokenizer=src_tokenizer,
            src_vocab=None if codec.shares_vocab else _with_specials(codec.src_vocab, specials),
            feature_vocabs=[_with_specials(values, specials) for values in codec.feature_vocabs],
        ),
        {**files, **_template_file(template)},
    )


def updated_codec(config: TrainConfig, old: RunCodec, path: Path) -> RunCodec:
    """A checkpoint's codec with the vocabulary, and the tokeniser, of the options (`update_vocab`).

    Returns:
        `old` itself where the options name the same vocabulary and tokenisers.
    """
    codec = old.codec
    lm = codec.task == "lm"
    src_spec, tgt_spec = run_tokenizer_specs(config.corpora, lm=lm)
    src_tokenizer, tokenizer = _open(src_spec), _open(tgt_spec) or codec.tokenizer
    if src_tokenizer is None and not codec.shares_tokenizer:
        src_tokenizer = codec.src_tokenizer
    control = {*_roles(codec.config.specials), *codec.config.stop_tokens, *codec.control_tokens(codec.template)}
    wanted = [token for token in codec.vocab if token in control]
    wanted += added_tokens(
        config.corpora.data, config.corpora, tokenizers=[each for each in (src_tokenizer, tokenizer) if each]
    )
    tokens, src_tokens = _vocabularies(config.vocabulary, tokenizer, src_tokenizer, wanted, lm=lm)
    _check_shared(codec.config.model, src_tokens)
    same_tokens = tokens == list(codec.vocab)
    same_tokens &= src_tokens == (None if codec.shares_vocab else list(codec.src_vocab))
    if same_tokens and not any(other_tokenizers((src_spec, tgt_spec), codec.config, old.files)):
        logger.info("update_vocab: the vocabulary is that of %s already.", path)
        return old
    files = dict(old.files)
    sizes = {"vocab_size": len(tokens), "src_vocab_size": None if src_tokens is None else len(src_tokens)}
    update: dict[str, Any] = {"model": codec.config.model.model_copy(update=sizes)}
    if tgt_spec is not None:
        update |= tokenizer_update(codec.config, files, src_spec, tgt_spec)
        src_tokenizer = None if update["src_tokenizer"] is None else src_tokenizer
    specials = codec.config.specials
    new = Codec(
        codec.config.model_copy(update=update),
        Vocab(tokens, specials),
        tokenizer,
        template=codec.template,
        src_tokenizer=src_tokenizer,
        src_vocab=None if src_tokens is None else Vocab(src_tokens, specials),
        feature_vocabs=codec.feature_vocabs,
    )
    return RunCodec(new, files)


def _open_template(name: str | None, config: CheckpointConfig, tokenizer: Tokenizer, vocab: Vocab) -> Template | None:
    """The template of the run, as its checkpoints will open it."""
    if name is None:
        return None
    template = model_template(config.model_copy(update={"template": name}), tokenizer, vocab, Path())
    check_template(name, template, vocab)
    return template


def _feature_vocabs(config: TrainConfig, specials: SpecialTokens) -> list[Vocab]:
    """Values of each source feature, from `<src_vocab>_feat0` and so on, as named by OpenNMT-py."""
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
    """Configuration of a source feature with this many values."""
    if config.architecture.feat_merge == "sum":
        return FeatureConfig(vocab_size=values, size=config.architecture.hidden_size)
    size = config.vocabulary.feat_vec_size or int(values**config.vocabulary.feat_vec_exponent)
    return FeatureConfig(vocab_size=values, size=size)


def _check_shared(model: ModelConfig, src_tokens: Sequence[str] | None) -> None:
    if src_tokens is not None and model.share_embeddings:
        raise ConfigError("share_embeddings needs one vocabulary, but each side has its own: set share_vocab: true.")


def _open(spec: TokenizerSpec | None) -> Tokenizer | None:
    return None if spec is None else open_tokenizer(spec, Path())


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


def _new_specials(vocabulary: VocabularyConfig, *, lm: bool) -> SpecialTokens:
    """Roles of the special tokens of a new vocabulary, by their usual names.

    Raises:
        ConfigError: Targets of an encoder-decoder have no start token.
    """
    given = vocabulary.default_specials
    start = vocabulary.decoder_start_token
    if start == "" and not lm:
        raise no_start()

    def first(*names: str) -> str | None:
        return next((name for name in names if name in given), None)

    return SpecialTokens(
        unk=first("<unk>"),
        bos=None if start == "" else start or first("<s>") or "<s>",
        eos=first("</s>") or "</s>",
        pad=first("<blank>", "<pad>"),
        add_bos=start != "",
    )


def _with_specials(vocab: Vocab, specials: SpecialTokens) -> Vocab:
    """The same tokens with these special tokens."""
    return vocab if vocab.specials == specials else Vocab(list(vocab), specials)


def _padded(tokens: list[str], rows: int) -> list[str]:
    """Tokens padded to `vocab_size`, if it is given."""
    if rows and rows < len(tokens):
        raise ConfigError(f"vocab_size must be at least the size of the vocabulary, {len(tokens)}, but is {rows}.")
    return padded_to(tokens, rows) if rows else tokens


def _stored_name(template: str | None) -> str | None:
    return template if template is None or template in TEMPLATES else TEMPLATE_FILE


def _template_file(template: str | None) -> dict[str, bytes]:
    return {TEMPLATE_FILE: file_content(Path(template))} if template and template not in TEMPLATES else {}
