"""Options with which other toolkits shard a model among processes: ControlLLM's and Axolotl's.

`SHARDING` has one function per option, as `values.TRANSLATORS` has for OpenNMT-py's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from onmt_llm.config.compat.values import Translation, Translator

_WRAPPED = "each block is sharded by itself"
_FSDP2 = "FSDP2 does it always"
_WITHOUT_EFFECT = {
    "auto_wrap_policy": _WRAPPED,
    "transformer_layer_cls_to_wrap": _WRAPPED,
    "limit_all_gathers": _FSDP2,
    "sync_module_states": "every process reads its own part",
    "cpu_ram_efficient_loading": "every process reads its own part",
    "use_orig_params": _FSDP2,
    "state_dict_type": "every command reads the checkpoints",
    "final_state_dict_type": "every command reads the checkpoints",
    "backward_prefetch": "FSDP2 fetches the next block by itself",
    "backward_prefetch_policy": "FSDP2 fetches the next block by itself",
    "forward_prefetch": "FSDP2 fetches the next block by itself",
    "reshard_after_forward": "weights are given up after each block",
    "mixed_precision_policy": "model_dtype selects mixed precision",
}
"""Keys of Axolotl's `fsdp_config` that need no option here."""


def _switch(key: str, user: dict[str, Any], result: Translation) -> None:
    if user[key]:
        result.put_default("shard", "full", key)


def _size(key: str, user: dict[str, Any], result: Translation) -> None:
    """The number of processes that share one copy."""
    result.put_default("shard", "full", key)
    result.put_default("shard_size", user[key], key)


def _copies(key: str, user: dict[str, Any], result: Translation) -> None:
    """The number of copies; that of processes which share one follows from it."""
    copies, processes, size = user[key], user.get("world_size"), result.values.get("shard_size")
    if type(copies) is not int or copies < 1:
        result.errors.append((key, f"'{key}' must be a number of copies, at least 1, but is {copies}."))
    elif type(processes) is not int:
        if not size:
            result.errors.append((key, f"'{key}' needs world_size, from which shard_size follows."))
    elif processes % copies or size not in (None, processes // copies):
        share = "" if size is None else f" that {size} processes share"
        result.errors.append((key, f"'{key}' copies{share} must be those of world_size {processes}, but are {copies}."))
    else:
        result.put_default("shard", "full", key)
        result.put_default("shard_size", processes // copies, key)


def _version(user: dict[str, Any], result: Translation) -> None:
    result.notes.append(("fsdp_version", "'fsdp_version' has no effect: weights are sharded by FSDP2."))


def _fsdp(user: dict[str, Any], result: Translation) -> None:
    given = user["fsdp"] or []
    words = given.split() if isinstance(given, str) else given
    if not isinstance(words, list) or any(word not in ("full_shard", "auto_wrap") for word in words):
        sentence = f"'fsdp' must be full_shard and auto_wrap, but is {given}."
        result.errors.append(("fsdp", sentence))
    elif words:
        result.put_default("shard", "full", "fsdp")


def _fsdp_config(user: dict[str, Any], result: Translation) -> None:
    if not isinstance(user["fsdp_config"], dict):
        result.errors.append(("fsdp_config", f"'fsdp_config' must be a mapping, but is {user['fsdp_config']}."))
        return
    result.put_default("shard", "full", "fsdp_config")
    for key, value in user["fsdp_config"].items():
        name = f"fsdp_config.{key}"
        plain = str(key).removeprefix("fsdp_")
        if plain in _WITHOUT_EFFECT:
            result.notes.append(("fsdp_config", f"'{name}' has no effect: {_WITHOUT_EFFECT[plain]}."))
        elif plain == "activation_checkpointing":
            if value:
                result.put_default("use_ckpting", ["block"], "fsdp_config")
        elif plain == "sharding_strategy" and value in ("FULL_SHARD", "NO_SHARD"):
            result.put("shard", "full" if value == "FULL_SHARD" else "off", "fsdp_config")
        elif plain == "sharding_strategy" and value == "HYBRID_SHARD" and "shard_size" in result.values:
            continue
        elif plain == "sharding_strategy":
            sentence = f"'{name}' must be FULL_SHARD, or HYBRID_SHARD with shard_size, but is {value}."
            result.errors.append(("fsdp_config", sentence))
        elif plain == "offload_params":
            if value:
                result.errors.append(("fsdp_config", f"'{name}' must be false: weights stay on their devices."))
        else:
            result.errors.append(("fsdp_config", f"'{name}' is not a setting that is known here."))


def _named(function: Callable[[str, dict[str, Any], Translation], None], key: str, meaning: str) -> Translator:
    return Translator(partial(function, key), meaning)


SHARDING = {
    "enable_fsdp": _named(_switch, "enable_fsdp", "`shard: full`"),
    "hsdp": _named(_switch, "hsdp", "`shard: full`"),
    "fsdp": Translator(_fsdp, "`full_shard` = `shard: full`"),
    "sharding_group_size": _named(_size, "sharding_group_size", "`shard_size`"),
    "dp_shard_size": _named(_size, "dp_shard_size", "`shard_size`"),
    "replica_group_size": _named(_copies, "replica_group_size", "`shard_size` = `world_size` / copies"),
    "dp_replicate_size": _named(_copies, "dp_replicate_size", "`shard_size` = `world_size` / copies"),
    "fsdp_version": Translator(_version, "no effect: weights are sharded by FSDP2"),
    "fsdp_config": Translator(_fsdp_config, "`shard: full`, its settings one by one"),
}
"""By option, in the order in which they are applied."""

STRUCTURED = frozenset({"fsdp", "fsdp_config"})
"""Options whose values are lists or mappings."""
