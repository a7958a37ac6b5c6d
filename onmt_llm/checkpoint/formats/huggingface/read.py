"""Read Hugging Face model directories: config.json with safetensors or `.bin` shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.families.base import Family, HfConfig
from onmt_llm.checkpoint.formats.huggingface.quantized import declared_method, plain_weights, with_older_settings
from onmt_llm.checkpoint.formats.huggingface.sampling import read_sampling
from onmt_llm.checkpoint.formats.huggingface.weights import has_weights, open_weights, renamed, without_copies
from onmt_llm.checkpoint.formats.imported import ImportedModel, ImportOptions, TypedSource, are_copies
from onmt_llm.checkpoint.formats.rules import Rule, check_sizes, overridden
from onmt_llm.checkpoint.formats.tokenizer_files import fit, from_huggingface, read_json
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import Problem, UnsupportedError, raise_problems
from onmt_llm.log import logger

HEAD = "lm_head.weight"
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
"""Ends of the names of classes whose outputs are the logits of a vocabulary."""


def find_huggingface(path: Path) -> bool:
    """Whether there is a Hugging Face model at `path`: config.json, and weights of which it may be the description."""
    return (path / "config.json").is_file() and has_weights(path)


def open_huggingface(model_dir: Path, options: ImportOptions) -> ImportedModel:
    """Open a Hugging Face model directory of a supported family.

    Raises:
        CheckpointError: Files are missing or damaged.
        UnsupportedError: The architecture, or something in its configuration, is not supported.
    """
    hf_config = with_older_settings(read_json(model_dir / "config.json"), model_dir)
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
        sampling=read_sampling(model_dir),
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
    return are_copies(source, HEAD, *embeddings)


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
