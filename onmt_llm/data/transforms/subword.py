"""Options of the tokenising transforms, and the tokenisers that they specify."""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from onmt_llm.config.checkpoint import TokenizerKind, TokenizerSpec
from onmt_llm.config.data import DataConfig
from onmt_llm.config.numbers import CountOrAll, CountOrZero, PositiveOrZero
from onmt_llm.config.section import Section
from onmt_llm.data.transforms.transform import TRANSFORMS, TransformContext
from onmt_llm.errors import ConfigError, DataError, UnsupportedError
from onmt_llm.optional import require
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.tokenizers.bpe import BpeTokenizer
from onmt_llm.text.tokenizers.control_guard import unguarded
from onmt_llm.text.tokenizers.huggingface import HfTokenizer
from onmt_llm.text.tokenizers.open import open_tokenizer
from onmt_llm.text.tokenizers.pyonmttok import OnmtTokenizer
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer

Side = Literal["src", "tgt"]

SECTION = "subword"
"""Section of the options."""

PASS_THROUGH = {"mode": "none"}

_CLASSES: Mapping[TokenizerKind, tuple[type, ...]] = {
    "sentencepiece": (SentencePieceTokenizer,),
    "bpe": (BpeTokenizer,),
    "onmt_tokenize": (OnmtTokenizer, SentencePieceTokenizer),
    "huggingface": (HfTokenizer,),
}
"""Tokenisers of a checkpoint that each kind accepts; pyonmttok in pass-through mode is plain SentencePiece."""


class SubwordConfig(Section):
    """Options of the tokenising transforms, with OpenNMT-py's names."""

    src_subword_model: str = ""
    """Tokeniser model of the source side (of both sides, for a language model); empty = the checkpoint's."""
    tgt_subword_model: str = ""
    """Tokeniser model of the target side; empty = that of the source, with all its options, or the checkpoint's."""
    src_subword_type: Literal["none", "sentencepiece", "bpe"] = "none"
    """`onmt_tokenize`: type of `src_subword_model`."""
    tgt_subword_type: Literal["none", "sentencepiece", "bpe"] = "none"
    """`onmt_tokenize`: type of `tgt_subword_model`."""
    src_onmttok_kwargs: str | dict[str, Any] = Field(default_factory=lambda: dict(PASS_THROUGH))
    """`onmt_tokenize`: arguments of pyonmttok's Tokenizer for the source, as a mapping or as text."""
    tgt_onmttok_kwargs: str | dict[str, Any] = Field(default_factory=lambda: dict(PASS_THROUGH))
    """`onmt_tokenize`: arguments of pyonmttok's Tokenizer for the target."""
    gpt2_pretok: bool = False
    """`onmt_tokenize`: map bytes to characters as GPT-2 does (`Ġ` for a space) before BPE."""
    src_subword_vocab: str = ""
    """Accepted for OpenNMT-py without effect: the vocabulary of `src_vocab_threshold`."""
    tgt_subword_vocab: str = ""
    """Accepted for OpenNMT-py without effect: the vocabulary of `tgt_vocab_threshold`."""
    src_vocab_threshold: CountOrZero = 0
    """OpenNMT-py's frequency limit of source subwords; only 0 (off) is supported."""
    tgt_vocab_threshold: CountOrZero = 0
    """OpenNMT-py's frequency limit of target subwords; only 0 (off) is supported."""
    src_subword_nbest: CountOrAll = 1
    """`sentencepiece`, training: sample the segmentation of the source from this many candidates; 1 = the best, -1 =
    all."""
    tgt_subword_nbest: CountOrAll = 1
    """`sentencepiece`, training: sample the segmentation of the target from this many candidates; 1 = the best, -1 =
    all."""
    src_subword_alpha: PositiveOrZero = 0.0
    """Training: smoothing of the sampling (`sentencepiece`) or BPE-dropout (`bpe`, `onmt_tokenize`) on the source."""
    tgt_subword_alpha: PositiveOrZero = 0.0
    """Training: smoothing of the sampling (`sentencepiece`) or BPE-dropout (`bpe`, `onmt_tokenize`) on the target."""

    @field_validator("src_onmttok_kwargs", "tgt_onmttok_kwargs")
    @classmethod
    def _mapping(cls, value: str | dict[str, Any]) -> dict[str, Any]:
        try:
            parsed = _literal(value) if isinstance(value, str) else value
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ValueError(f"must be a mapping such as {PASS_THROUGH}, but is not valid: {value}") from error
        if not isinstance(parsed, dict):
            raise ValueError(f"must be a mapping such as {PASS_THROUGH}, but is {value}")
        return parsed

    @property
    def target_side(self) -> Side:
        """The side whose options the target uses."""
        return "tgt" if self.tgt_subword_model or not self.src_subword_model else "src"


def _literal(text: str) -> Any:
    """Parse JSON or a Python literal; no code is evaluated."""
    if not text.strip():
        return {}
    try:
        return json.loads(text)
    except ValueError:
        return ast.literal_eval(text.strip())


def subword_options(data: DataConfig) -> SubwordConfig:
    """Options of the tokenising transforms."""
    config = data.transform_options.get(SECTION, SubwordConfig())
    assert isinstance(config, SubwordConfig)
    return config


def tokenizer_specs(data: DataConfig) -> tuple[TokenizerSpec | None, TokenizerSpec | None]:
    """Tokenisers of source and target to save in a new checkpoint, with `file` as given by the user.

    Returns:
        None for a side whose tokeniser the options do not specify: no tokenising transform is listed, or it uses the
        checkpoint's own.
    """
    return named_specs(data.model_transforms, subword_options(data))


def named_specs(transforms: Iterable[str], config: SubwordConfig) -> tuple[TokenizerSpec | None, TokenizerSpec | None]:
    """As `tokenizer_specs`, from a list of transforms and the options of the tokenising ones."""
    for name in transforms:
        kind = TRANSFORMS.get(name).kind
        if kind is not None:
            return tokenizer_spec(kind, config, "src"), tokenizer_spec(kind, config, config.target_side)
    return None, None


def tokenizer_spec(kind: TokenizerKind, config: SubwordConfig, side: Side) -> TokenizerSpec | None:
    """The tokeniser that the options of a side specify; None = the checkpoint's.

    Its `file` is the path as given by the user.

    Raises:
        ConfigError: The options are inconsistent.
        UnsupportedError: A vocabulary threshold is set.
    """
    model, subword_type = getattr(config, f"{side}_subword_model"), getattr(config, f"{side}_subword_type")
    threshold = getattr(config, f"{side}_vocab_threshold")
    if threshold and getattr(config, f"{side}_subword_vocab"):
        raise UnsupportedError(
            f"{side}_vocab_threshold must be 0, but is {threshold}.",
            hint="train a tokeniser with a smaller vocabulary instead",
        )
    if kind != "onmt_tokenize":
        return TokenizerSpec(kind=kind, file=model) if model else None
    if bool(model) != (subword_type != "none"):
        raise ConfigError(
            f"{side}_subword_model and {side}_subword_type must be given together, "
            f"but are '{model}' and '{subword_type}'."
        )
    arguments = dict(getattr(config, f"{side}_onmttok_kwargs"))
    if not model and arguments == PASS_THROUGH:
        return None
    if model:
        arguments["subword_type"] = subword_type
    if config.gpt2_pretok:
        arguments["gpt2_pretok"] = True
    return TokenizerSpec(kind=kind, file=model or None, options=arguments)


def random_options(kind: TokenizerKind, config: SubwordConfig, side: Side) -> dict[str, Any]:
    """Arguments that enable random sampling in the tokeniser; empty if it is off."""
    nbest, alpha = getattr(config, f"{side}_subword_nbest"), getattr(config, f"{side}_subword_alpha")
    if kind == "sentencepiece":
        return {"nbest": nbest, "alpha": alpha} if alpha > 0 and nbest != 1 else {}
    if kind == "bpe":
        return {"dropout": alpha} if alpha > 0 else {}
    if kind == "onmt_tokenize":
        return _random_onmttok(config, side, nbest, alpha)
    if alpha > 0:
        raise ConfigError(f"{side}_subword_alpha must be 0 with huggingface_tokenize, but is {alpha}.")
    return {}


def _random_onmttok(config: SubwordConfig, side: Side, nbest: int, alpha: float) -> dict[str, Any]:
    arguments = getattr(config, f"{side}_onmttok_kwargs")
    given = {key: arguments[key] for key in ("bpe_dropout", "sp_nbest_size", "sp_alpha") if arguments.get(key)}
    if alpha > 0:
        is_bpe = getattr(config, f"{side}_subword_type") == "bpe"
        given |= {"bpe_dropout": alpha} if is_bpe else {"sp_nbest_size": nbest, "sp_alpha": alpha}
    # pyonmttok samples only in training mode
    return given | {"training": True} if given else {}


def open_tokenizers(
    name: str, kind: TokenizerKind, config: SubwordConfig, context: TransformContext
) -> tuple[Tokenizer, Tokenizer]:
    """Tokenisers of source and target from the options, or else from the checkpoint.

    Args:
        name: The transform, for messages.
        kind: Its kind of tokeniser.
        config: Its options.
        context: The model's text processing and the task.

    Raises:
        ConfigError, DataError, UnsupportedError: The options are inconsistent, a model cannot be read, or the
            checkpoint has no tokeniser of this kind.
    """
    joint = context.codec.task == "lm"
    if joint and config.tgt_subword_model not in ("", config.src_subword_model):
        raise ConfigError(
            "tgt_subword_model must be empty or equal to src_subword_model for a language model, "
            f"but they are '{config.tgt_subword_model}' and '{config.src_subword_model}'."
        )
    src = _open_side(kind, config, "src", training=context.training)
    src = src or _of_checkpoint(name, kind, context.codec.src_tokenizer, "src")
    if joint or config.target_side == "src":
        return src, src
    tgt = _open_side(kind, config, "tgt", training=context.training)
    return src, tgt or _of_checkpoint(name, kind, context.codec.tokenizer, "tgt")


def _open_side(kind: TokenizerKind, config: SubwordConfig, side: Side, *, training: bool) -> Tokenizer | None:
    """The tokeniser of a side, with sampling if configured and in training; None = the checkpoint's.

    Raises:
        ConfigError, DataError, UnsupportedError: See `tokenizer_spec` and `open_tokenizer`.
    """
    spec = tokenizer_spec(kind, config, side)
    draws = random_options(kind, config, side) if training else {}
    if spec is None:
        if draws:
            raise ConfigError(f"{side}_subword_model must be given if its tokeniser is to sample, but is empty.")
        return None
    try:
        return open_tokenizer(spec.model_copy(update={"options": spec.options | draws}), Path())
    except DataError as error:
        raise DataError(f"{side}_subword_model: {error.message}", hint=error.hint) from error


def _of_checkpoint(name: str, kind: TokenizerKind, tokenizer: Tokenizer, side: str) -> Tokenizer:
    inner = unguarded(tokenizer)
    if isinstance(inner, WhitespaceTokenizer):
        raise ConfigError(
            f"Transform '{name}' needs a {side}_subword_model, or a tokeniser in the checkpoint, but has none."
        )
    others = [other for other, classes in _CLASSES.items() if isinstance(inner, classes)]
    if others and kind not in others:
        raise ConfigError(
            f"Transform '{name}' without a {side}_subword_model needs a tokeniser of its kind in the checkpoint, "
            f"but finds one of kind '{others[0]}'."
        )
    return tokenizer


def seeder(kind: TokenizerKind) -> Callable[[int], None]:
    """The function that seeds a library's random generator, which is global to the process in all three libraries."""
    if kind == "bpe":
        return random.seed
    module, function = {
        "sentencepiece": ("sentencepiece", "set_random_generator_seed"),
        "onmt_tokenize": ("pyonmttok", "set_random_seed"),
    }[kind]
    return getattr(require(module, f"transform {kind}"), function)
