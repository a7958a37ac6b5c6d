"""Read Hugging Face model directories: config.json with safetensors or `.bin` shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onmt_llm.checkpoint.files.safetensors import INDEX_FILE, WEIGHTS_FILE, SafetensorsSet, open_index
from onmt_llm.checkpoint.files.torch_pickle import TorchTensors
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.families.base import Family, HfConfig
from onmt_llm.checkpoint.formats.huggingface.quantized import declared_method, plain_weights
from onmt_llm.checkpoint.formats.imported import ImportedModel, ImportOptions, TypedSource
from onmt_llm.checkpoint.formats.rules import Rule, check_sizes, overridden
from onmt_llm.checkpoint.formats.tokenizer_files import fit, from_huggingface, read_json
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, Problem, UnsupportedError, raise_problems
from onmt_llm.log import logger

BIN_INDEX_FILE = "pytorch_model.bin.index.json"
BIN_FILE = "pytorch_model.bin"
HEAD = "lm_head.weight"
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
"""Ends of the names of classes whose outputs are the logits of a vocabulary."""


def open_huggingface(model_dir: Path, options: ImportOptions) -> ImportedModel:
    """Open a Hugging Face model directory of a supported family.

    Raises:
        CheckpointError: Files are missing or damaged.
        UnsupportedError: The architecture, or something in its configuration, is not supported.
    """
    hf_config = read_json(model_dir / "config.json")
    family = _readable_family(hf_config)
    model = family.to_model(hf_config, ignore_unknown=options.ignore_unknown)
    source = renamed(plain_weights(hf_config, open_weights(model_dir), model_dir), family.older)
    check_sizes(model, source, model_dir)
    absent = {ours: False for name, ours in family.optional.items() if name not in source.names()}
    model = model.model_copy(update=absent)
    if model.share_embeddings:
        source = without_copies(source, family.embedding)
    if _is_tied(model, "tie_word_embeddings" in hf_config, source, family) != model.tie_embeddings:
        model = model.model_copy(update={"tie_embeddings": not model.tie_embeddings})
    tokenizer = from_huggingface(
        model_dir, rows=model.vocab_size, tokenizer_model=options.tokenizer_model, vocab_file=options.vocab_file
    )
    if model.src_vocab_size is not None and tokenizer.src_tokens is None:
        tokenizer.src_tokens = fit(tokenizer.tokens, model.src_vocab_size)
    return ImportedModel(
        origin=f"{family.origin}, {model_dir.name}",
        model=model,
        source=source,
        rules=_rules(family, model, source),
        ignore=(*family.ignore, HEAD) if model.tie_embeddings else family.ignore,
        tokenizer=tokenizer,
    )


def _rules(family: Family, model: ModelConfig, source: TypedSource) -> list[Rule]:
    """The rules of the family for the tensors that the files hold."""
    here = set(source.names())
    return overridden(family.rules(model), [one for one in family.others(model) if here.issuperset(one.theirs)])


def _is_tied(model: ModelConfig, stated: bool, source: TypedSource, family: Family) -> bool:
    """Whether the output layer is the embedding.

    As in transformers 5, an output layer in the file that differs from the embedding counts, whatever `config.json`
    says: transformers 5 itself writes that a T5 1.1 is tied.

    Args:
        model: The architecture that `config.json` describes.
        stated: `config.json` says whether they are tied.
        source: The tensors.
        family: The family.
    """
    here = source.names()
    if HEAD not in here:
        return model.tie_embeddings or not stated
    embeddings = [one.theirs[0] for one in family.rules(model) if one.ours == ("decoder.embed_tokens.weight",)]
    if not model.tie_embeddings or any(name not in here for name in embeddings):
        return model.tie_embeddings
    return all(torch.equal(source.tensor(name), source.tensor(HEAD)) for name in embeddings)


def _readable_family(hf_config: Mapping[str, Any]) -> Family:
    """The family; one error lists everything in config.json that stands in the way."""
    problems = list(_declared_problems(hf_config))
    family: Family | None = None
    try:
        family = family_of(hf_config)
    except UnsupportedError as error:
        method = declared_method(hf_config)
        if method is not None:
            sentence = f"The weights must be floating-point numbers, but are quantised with {method}."
            problems.append(Problem(sentence, kind=UnsupportedError))
        problems.insert(0, Problem.of(error))
    if problems:
        raise_problems(problems)
    assert family is not None
    return family


def _declared_problems(hf_config: HfConfig) -> Iterator[Problem]:
    """What the classes that `config.json` names have in the way of a conversion."""
    classes = hf_config.get("architectures")
    names = [str(name) for name in classes] if isinstance(classes, list) else []
    if names and not any(name.endswith(_LANGUAGE_MODELS) for name in names):
        yield Problem(
            f"A model must have an output layer over its vocabulary, but architectures in config.json is "
            f"{', '.join(names)}.",
            hint="convert the language model that it was made from",
            kind=UnsupportedError,
        )
    own = _own_class(hf_config)
    if own is None:
        return
    stem = str(hf_config.get("model_type")).replace("_", "")
    if own.rpartition(".")[2].lower() not in {f"{stem}{end}".lower() for end in _LANGUAGE_MODELS}:
        yield Problem(
            f"A model must be computed by a class of transformers, but auto_map in config.json names {own}, and code "
            "that comes with a model is never run.",
            hint="convert a copy that transformers loads without trust_remote_code, if there is one",
            kind=UnsupportedError,
        )
    else:
        logger.warning("auto_map in config.json names %s; the class of that name in transformers is taken.", own)


def _own_class(hf_config: HfConfig) -> str | None:
    """The class that comes with the model and computes it."""
    auto_map = hf_config.get("auto_map")
    classes = auto_map if isinstance(auto_map, dict) else {}
    models = (value for key, value in classes.items() if key.startswith("AutoModel"))
    return next((str(value) for value in models), None)


def family_of(hf_config: Mapping[str, Any]) -> Family:
    """The family that a Hugging Face `config.json` belongs to.

    Raises:
        UnsupportedError: The family is not supported.
    """
    model_type = hf_config.get("model_type")
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    others = [key for key in ("vision_config", "audio_config") if hf_config.get(key) is not None]
    if others:
        text_type = (hf_config.get("text_config") or {}).get("model_type", "?")
        raise UnsupportedError(
            f"A model must read text only, but config.json of this '{model_type}' also has {' and '.join(others)}.",
            hint=f"convert its language model, saved on its own (model_type '{text_type}')",
        )
    known = ", ".join(family.model_type for family in FAMILIES)
    raise UnsupportedError(f"model_type in config.json must be one of {known}, but is '{model_type}'.")


def open_weights(model_dir: Path) -> TypedSource:
    """The tensors of the directory: safetensors if there are any, otherwise PyTorch `.bin` files."""
    if (model_dir / INDEX_FILE).is_file():
        return open_index(model_dir / INDEX_FILE)
    if (model_dir / WEIGHTS_FILE).is_file():
        return SafetensorsSet(model_dir, [WEIGHTS_FILE])
    if (model_dir / BIN_INDEX_FILE).is_file():
        return TorchTensors.open([model_dir / name for name in _bin_shards(model_dir / BIN_INDEX_FILE)])
    if (model_dir / BIN_FILE).is_file():
        return TorchTensors.open([model_dir / BIN_FILE])
    raise CheckpointError(
        f"{model_dir} must hold {WEIGHTS_FILE}, {INDEX_FILE}, {BIN_FILE} or {BIN_INDEX_FILE}, but holds none."
    )


@dataclass(frozen=True)
class RenamedTensors:
    """Tensors under other names.

    Attributes:
        source: Holds the tensors.
        originals: Its name for each of ours.
    """

    source: TypedSource
    originals: Mapping[str, str]

    def names(self) -> list[str]:
        return list(self.originals)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self.originals[name])

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(self.originals[name])

    def tensor(self, name: str) -> Tensor:
        return self.source.tensor(self.originals[name])


def renamed(source: TypedSource, prefixes: Sequence[tuple[str, str]]) -> TypedSource:
    """The tensors under current names: where a name begins with the first of a pair, it begins with the second."""

    def current(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in prefixes if name.startswith(old)), name)

    return RenamedTensors(source, {current(name): name for name in source.names()}) if prefixes else source


def without_copies(source: TypedSource, names: Sequence[str]) -> TypedSource:
    """The tensors with one of those that are stored under several names, under the first of these names.

    Raises:
        CheckpointError: They are not copies of one another.
    """
    here = [name for name in names if name in source.names()]
    different = [name for name in here[1:] if not torch.equal(source.tensor(name), source.tensor(here[0]))]
    if different:
        raise CheckpointError(
            f"Encoder and decoder must share one embedding, but {', '.join(different)} differs from {here[0]}."
        )
    others = {name: name for name in source.names() if name not in here}
    return RenamedTensors(source, {**others, names[0]: here[0]}) if here else source


def _bin_shards(index: Path) -> list[str]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} must be JSON with a `weight_map`, but is not ({error!r}).") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise CheckpointError(f"The shards in {index} must be files beside it, but are: {', '.join(outside[:5])}.")
    return names
