"""What `config.json` says about the model besides its sizes: another head than a language model's, code of its own."""

from __future__ import annotations

from collections.abc import Iterator

from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig
from onmt_llm.errors import Problem, UnsupportedError
from onmt_llm.log import logger

_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel")
"""Ends of the names of classes whose outputs are the logits of a vocabulary."""


def declared_problems(hf_config: HfConfig) -> Iterator[Problem]:
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
