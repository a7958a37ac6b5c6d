"""Replace named layers of a model: how LoRA, quantisation and block expansion get into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from onmt_llm.errors import ConfigError
from onmt_llm.registry import nearest

T = TypeVar("T")


def match(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Dotted paths of the modules that the names match, in the order of the model.

    A name matches every module whose path equals it or ends with "." + name: `q_proj`, `cross_attn.q_proj`,
    `decoder.layers.0.mlp.up_proj`.

    Raises:
        ConfigError: Some names match nothing; the message lists them all, and the layers that exist.
    """
    paths = [path for path, _ in model.named_modules() if path]
    missing = [name for name in names if not any(matches(name, path) for path in paths)]
    if missing:
        known = layer_names(model)
        guesses = [f"'{guess}'" for name in missing if (guess := nearest(name, known))]
        raise ConfigError(
            f"Every layer name must match a layer of the model, but {', '.join(map(repr, missing))} "
            f"match{'es' if len(missing) == 1 else ''} none; there are: {', '.join(known)}.",
            hint=f"did you mean {', '.join(guesses)}?" if guesses else None,
        )
    return [path for path in paths if any(matches(name, path) for name in names)]


def layer_names(model: nn.Module) -> list[str]:
    """Last components of the paths of all layers with a matrix: embed_tokens, q_proj, ..., down_proj, lm_head."""
    paths = [path for path, module in model.named_modules() if getattr(getattr(module, "weight", None), "ndim", 0) == 2]
    # A wrapped layer is the `base` of its wrapper: its name is the wrapper's.
    return list(dict.fromkeys(path.removesuffix(".base").rpartition(".")[2] for path in paths))


def replace(model: nn.Module, names: Sequence[str], factory: Callable[[nn.Module, str], nn.Module]) -> list[str]:
    """Replace every module that the names match by `factory(module, path)`, one after another.

    Each old module is released before the next one is built, unless the new one keeps it.

    Returns:
        Dotted paths of the replaced modules.

    Raises:
        ConfigError: A name matches nothing, or the factory refuses a module.
    """
    paths = match(model, names)
    for path in paths:
        parent = model.get_submodule(path.rpartition(".")[0])
        leaf = path.rpartition(".")[2]
        old = getattr(parent, leaf)
        new = factory(old, path)
        new.train(old.training)
        setattr(parent, leaf, new)
    return paths


def lookup(values: Mapping[str, T], path: str, default: T) -> T:
    """The value of the longest name in `values` that matches `path`, else `default`."""
    found = [name for name in values if matches(name, path)]
    return values[max(found, key=len)] if found else default


def matches(name: str, path: str) -> bool:
    """Whether `name` matches the layer at `path`; see `match`."""
    return path == name or path.endswith("." + name)
