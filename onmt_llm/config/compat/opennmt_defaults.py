"""Defaults of OpenNMT-py 3.5.1 that are others here: what a YAML in its names means differently by leaving out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from onmt_llm.config.compat import translate as aliases
from onmt_llm.config.compat.names import OF_OTHER_TOOLKITS

DIFFERENT: dict[str, tuple[Any, str]] = {
    "encoder_type": ("rnn", ""),
    "decoder_type": ("rnn", ""),
    "enc_layers": (2, "encoder_layers"),
    "dec_layers": (2, "decoder_layers"),
    "enc_hid_size": (500, "hidden_size"),
    "position_encoding": (False, "position"),
    "param_init": (0.1, "param_init"),
    "dropout": ([0.3], "dropout"),
    "attention_dropout": ([0.1], "attention_dropout"),
    "optim": ("sgd", "optim"),
    "learning_rate": (1.0, "learning_rate"),
    "start_decay_steps": (50000, "start_decay_steps"),
    "warmup_steps": (4000, "warmup_steps"),
    "normalization": ("sents", "normalization"),
    "bucket_size": (262144, "bucket_size"),
    "src_vocab_size": (32768, "src_vocab_size"),
    "tgt_vocab_size": (32768, "tgt_vocab_size"),
    "early_stopping_criteria": (["ppl", "accuracy"], "early_stopping_criteria"),
    "src_eq_tgt": (False, "src_eq_tgt"),
    "same_char": (False, "same_char"),
    "same_word": (False, "same_word"),
}
"""Its options whose default changes what is trained: that default, and our leaf (none: a Transformer in any case)."""

_NEW_MODEL = {"encoder_type", "decoder_type", "enc_layers", "dec_layers", "enc_hid_size", "position_encoding"}
_NEW_MODEL |= {"param_init", "src_vocab_size", "tgt_vocab_size"}
_ITS_SIGNS = {"world_size", "gpu_ranks"}


def in_its_names(user: Collection[str], own: Collection[str]) -> bool:
    """Whether keys hold one that only OpenNMT-py has, or its way to name GPUs.

    Args:
        user: Keys as written.
        own: Our options.
    """
    return any(
        key in _ITS_SIGNS or (key in aliases.known_names() and key not in own and key not in OF_OTHER_TOOLKITS)
        for key in user
    )


def left_out(written: Collection[str], values: Mapping[str, Any]) -> str | None:
    """One sentence on the options that are left out and have another default in OpenNMT-py; None if there are none.

    Args:
        written: Our leaves, and the user's keys, that were given.
        values: The job's leaves.
    """
    listed, new_model = [], not values["train_from"] or (values["train_from"] == "auto" and not values["init_from"])
    for name, (theirs, leaf) in DIFFERENT.items():
        here = values.get(leaf) if leaf else "transformer"
        skipped = name in _NEW_MODEL and not new_model
        if skipped or name in written or leaf in written or not _matters(name, values) or here == theirs:
            continue
        listed.append(f"{name} {_shown(theirs)} ({_shown(here)} here)")
    if not listed:
        return None
    return f"Options of OpenNMT-py that are left out, and have another default there: {', '.join(listed)}."


def _matters(name: str, values: Mapping[str, Any]) -> bool:
    """Whether an option means something beside the others."""
    decay = values["decay_method"]
    return {
        "encoder_type": values["encoder_layers"] > 0,
        "enc_layers": values["encoder_layers"] > 0,
        "tgt_vocab_size": values["encoder_layers"] > 0 and not values["share_vocab"],
        "param_init": not values["param_init_glorot"],
        "start_decay_steps": decay == "none",
        "warmup_steps": decay in ("noam", "noamwd", "rsqrt"),
        "early_stopping_criteria": bool(values["early_stopping"]),
        **dict.fromkeys(("src_eq_tgt", "same_char", "same_word"), "clean" in values["transforms"]),
    }.get(name, True)


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )
