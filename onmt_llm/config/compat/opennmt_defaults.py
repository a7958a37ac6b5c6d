"""Defaults of OpenNMT-py 3.5.1 that differ from ours, and the note about them for a YAML file written for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

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
    "weight_decay": (0.01, "weight_decay"),
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
"""Options whose different default changes what is trained: OpenNMT-py's default, and our option (empty: always a
Transformer)."""

DIFFERENT_AT_INFERENCE: dict[str, Any] = {"beam_size": 5, "max_length": 250}
"""Options of translation whose different default changes the answers, and OpenNMT-py's default."""

_ONLY_FOR_NEW_MODELS = {"encoder_type", "decoder_type", "enc_layers", "dec_layers", "enc_hid_size", "position_encoding"}
_ONLY_FOR_NEW_MODELS |= {"param_init", "src_vocab_size", "tgt_vocab_size"}


def differing_defaults(written: Collection[str], values: Mapping[str, Any]) -> str | None:
    """A note about the options that are not set and have another default in OpenNMT-py; None if there are none.

    Args:
        written: The options that are set, in our names and in the user's.
        values: All options of the job.
    """
    listed, new_model = [], not values["train_from"] or (values["train_from"] == "auto" and not values["init_from"])
    for name, (theirs, option) in DIFFERENT.items():
        here = values.get(option) if option else "transformer"
        skipped = name in _ONLY_FOR_NEW_MODELS and not new_model
        if skipped or name in written or option in written or not _matters(name, values) or here == theirs:
            continue
        listed.append(f"{name} {_shown(theirs)} ({_shown(here)} here)")
    return _sentence(listed)


def differing_inference_defaults(written: Collection[str], values: Mapping[str, Any]) -> str | None:
    """As `differing_defaults`, for translation; an option that follows from another one is not listed."""
    listed = []
    for name, theirs in DIFFERENT_AT_INFERENCE.items():
        samples = name == "beam_size" and values["random_sampling_topk"] != 1
        if name not in written and values[name] != theirs and not samples:
            listed.append(f"{name} {_shown(theirs)} ({_shown(values[name])} here)")
    return _sentence(listed)


def _sentence(listed: list[str]) -> str | None:
    """The note; None if there is nothing to say."""
    if not listed:
        return None
    return f"Options that are not set and have another default in OpenNMT-py: {', '.join(listed)}."


def _matters(name: str, values: Mapping[str, Any]) -> bool:
    """Whether an option has an effect, given the others."""
    decay = values["decay_method"]
    return {
        "encoder_type": values["encoder_layers"] > 0,
        "enc_layers": values["encoder_layers"] > 0,
        "tgt_vocab_size": values["encoder_layers"] > 0 and not values["share_vocab"],
        "param_init": not values["param_init_glorot"],
        "weight_decay": values["optim"] in ("adamw8bit", "pagedadamw8bit", "pagedadamw32bit"),
        "start_decay_steps": decay == "none",
        "warmup_steps": decay in ("noam", "noamwd", "rsqrt"),
        "early_stopping_criteria": bool(values["early_stopping"]),
        **dict.fromkeys(("src_eq_tgt", "same_char", "same_word"), "clean" in values["transforms"]),
    }.get(name, True)


def _shown(value: Any) -> str:
    """A value in YAML syntax."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )
