"""`learn_subwords`: learn a SentencePiece or BPE model on the transformed text before the tokeniser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from onmt_llm.config.data import DataConfig
from onmt_llm.data.example import Example
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.transforms.features import InferFeats
from onmt_llm.data.transforms.subword import PASS_THROUGH, SubwordConfig, subword_options
from onmt_llm.data.transforms.tokenize import Tokenize
from onmt_llm.data.transforms.transform import TRANSFORMS
from onmt_llm.data.vocabulary.count import over_chunks
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.optional import require

SubwordKind = Literal["sentencepiece", "bpe"]

_LONGEST_LINE = 1 << 20  # bytes; SentencePiece skips longer lines


def subword_kind(spec: PipelineSpec) -> SubwordKind:
    """The kind of model that the transforms need.

    Raises:
        ConfigError: They list no tokeniser, several, or one whose model cannot be learned; or two models are named.
    """
    tokenizers = {name for names in _names(spec).values() for name in names if _tokenizes(name)}
    config = subword_options(spec.data)
    if config.tgt_subword_model not in ("", config.src_subword_model):
        raise ConfigError(
            "learn_subwords learns one model for both sides, so tgt_subword_model must be src_subword_model or empty, "
            f"but is '{config.tgt_subword_model}'."
        )
    if tokenizers == {"sentencepiece"} or tokenizers == {"bpe"}:
        return "sentencepiece" if "sentencepiece" in tokenizers else "bpe"
    if tokenizers == {"onmt_tokenize"} and config.src_subword_type != "none":
        return config.src_subword_type
    raise ConfigError(
        "learn_subwords must find one of sentencepiece, bpe or (with src_subword_type) onmt_tokenize in `transforms`, "
        f"but finds {', '.join(sorted(tokenizers)) or 'no tokeniser'}."
    )


def learn(
    spec: PipelineSpec, kind: SubwordKind, *, size: int, n_sample: int, processes: int, symbols: Sequence[str] = ()
) -> bytes:
    """The content of a new model file.

    Args:
        spec: The corpora with all their transforms.
        kind: Kind of model.
        size: Pieces (SentencePiece) or merges (BPE).
        n_sample: Records of each corpus; -1 = all.
        processes: Number of processes that read and transform.
        symbols: SentencePiece: texts that must be one piece each.

    Raises:
        DataError: The text is too small for this size.
    """
    parts = over_chunks(_before(spec), _TextLines(), n_sample=n_sample, processes=processes)
    lines = (line for part in parts for line in part)
    return _learn_sentencepiece(lines, size, symbols) if kind == "sentencepiece" else _learn_bpe(lines, size)


def with_model(spec: PipelineSpec, file: Path) -> PipelineSpec:
    """The corpora, tokenised with this model."""
    config = subword_options(spec.data).model_copy(update={"src_subword_model": str(file), "tgt_subword_model": ""})
    return replace(spec, data=_with_subword(spec.data, config))


def _learn_sentencepiece(lines: Iterator[str], size: int, symbols: Sequence[str]) -> bytes:
    """Lossless settings: no normalisation, all spaces kept, unknown characters as bytes."""
    model = io.BytesIO()
    try:
        require("sentencepiece", "learn_subwords").SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            vocab_size=size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            byte_fallback=True,
            user_defined_symbols=list(symbols),
            max_sentence_length=_LONGEST_LINE,
            minloglevel=1,
        )
    except RuntimeError as error:
        most, least = re.search(r"too high .*<= (\d+)", str(error)), re.search(r"smaller .* vs (\d+)", str(error))
        if not most and not least:
            raise DataError(f"SentencePiece cannot learn a model of this text: {error}.") from error
        bound = f"at most {most[1]}" if most else f"at least {least[1]}" if least else ""
        raise DataError(f"learn_subwords_size must be {bound} for this text, but is {size}.") from error
    return model.getvalue()


def _learn_bpe(lines: Iterator[str], size: int) -> bytes:
    import tempfile

    learner = require("pyonmttok", "learn_subwords with BPE").BPELearner(symbols=size)
    for line in lines:
        learner.ingest(line)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bpe.model"
        learner.learn(str(file))
        return file.read_bytes()


class _TextLines:
    """The text of both sides, or its words if the transforms have split it."""

    def __call__(self, examples: list[Example]) -> list[str]:
        lines: list[str] = []
        for example in examples:
            for side in (example.src, example.tgt):
                text = "".join(segment.text or " ".join(segment.tokens or ()) for segment in side)
                lines += [line for line in text.split("\n") if line]
        return lines


def _before(spec: PipelineSpec) -> PipelineSpec:
    """The corpora without subwords: words if pyonmttok splits the text, otherwise the text before the tokeniser."""
    config = subword_options(spec.data)
    splits = any("onmt_tokenize" in names for names in _names(spec).values())
    if splits and (config.src_onmttok_kwargs != PASS_THROUGH or config.gpt2_pretok):
        update: dict[str, Any] = {}
        for side in ("src", "tgt"):
            arguments = getattr(config, f"{side}_onmttok_kwargs")
            update[f"{side}_onmttok_kwargs"] = {**arguments, "joiner_annotate": False}
            update[f"{side}_subword_model"], update[f"{side}_subword_type"] = "", "none"
        words = config.model_copy(update=update)
        return replace(spec, data=_with_subword(spec.data, words), without=frozenset({InferFeats.name}))
    corpora = {
        name: spec.corpora[name].model_copy(update={"transforms": [each for each in names if not _tokenizes(each)]})
        for name, names in _names(spec).items()
    }
    return replace(spec, corpora=corpora, text_only=True)


def _names(spec: PipelineSpec) -> Mapping[str, Sequence[str]]:
    """The transforms of each corpus."""
    return {name: spec.data.transforms_of(corpus) for name, corpus in spec.corpora.items()}


def _with_subword(data: DataConfig, config: SubwordConfig) -> DataConfig:
    return data.model_copy(update={"transform_options": {**data.transform_options, Tokenize.section: config}})


def _tokenizes(name: str) -> bool:
    return TRANSFORMS.get(name).tokenizes
