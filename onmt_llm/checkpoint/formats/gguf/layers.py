"""What differs between the layers of a model in GGUF files: sliding windows and rotary positions.

Which layers have them is known from the architecture; where a key may say it, the architecture is the default.
"""

from __future__ import annotations

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.huggingface.families import layers as hf_layers
from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig, Row, Values, required
from onmt_llm.config.model import LayerType, ModelConfig

_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"

WINDOW = Row(
    (_WINDOW,),
    lambda found: {"sliding_window": found.get(_WINDOW) or None},
    lambda config: {_WINDOW: config.sliding_window or 0},
    anything("sliding_window"),
)
"""The sliding window of all layers; 0 = none."""


def windows(*, every: int, default: int | None = None) -> Row:
    """A sliding window in all layers but every n-th, unless a key says which.

    Args:
        every: The n of a file without that key.
        default: The window of a file without its key; None = no window.
    """
    hf = hf_layers.windows(every=every)

    def read(found: HfConfig) -> Values:
        size, pattern = found.get(_WINDOW, default) or None, found.get(_PATTERN, every)
        if size is None:
            return {"sliding_window": None}
        theirs: Values = {"num_hidden_layers": required(found, "block_count"), "sliding_window": size}
        if isinstance(pattern, list):
            theirs["layer_types"] = [hf_layers.SLIDING if entry else hf_layers.FULL for entry in pattern]
        else:
            theirs["sliding_window_pattern"] = pattern
        return hf.read(theirs)

    def expected(config: ModelConfig) -> bool:
        kinds: list[LayerType] = [
            hf_layers.SLIDING if layer % every else hf_layers.FULL for layer in range(1, config.decoder_layers + 1)
        ]
        return config.sliding_window is None or config.decoder_types == kinds

    checks = {
        "sliding_window": where(expected, f", but must be that of all layers except each {every}th"),
        "layer_types": where(expected, f", but only each {every}th layer must be of type {hf_layers.FULL}"),
    }
    return Row((_WINDOW, _PATTERN), read, lambda config: {_WINDOW: config.sliding_window or 0}, checks)


def windows_with_rotary(*, every: int) -> Row:
    """`windows`, where only the layers with a sliding window have rotary positions."""
    plain = windows(every=every)

    def read(found: HfConfig) -> Values:
        values = plain.read(found)
        kinds = values.get("layer_types", [])
        return {**values, "rope_layers": [kind == hf_layers.SLIDING for kind in kinds]}

    def holds(config: ModelConfig) -> bool:
        rotating = config.rope_layers or [True] * config.decoder_layers
        return rotating == [kind == hf_layers.SLIDING for kind in config.decoder_types]

    reason = ", but the layers with a sliding window must be those with rotary positions"
    return Row(plain.keys, read, plain.write, {**plain.checks, "rope_layers": where(holds, reason)})


def layers_without_rotary(*, every: int) -> Row:
    """Every n-th layer has no rotary positions."""

    def rotating(layers: int) -> list[bool]:
        found = [layer % every != 0 for layer in range(1, layers + 1)]
        return [] if all(found) else found

    def holds(config: ModelConfig) -> bool:
        return config.rope_layers == rotating(config.decoder_layers)

    return Row(
        (),
        lambda found: {"rope_layers": rotating(int(required(found, "block_count")))},
        lambda config: {},
        {"rope_layers": where(holds, f", but each {every}th layer must have no rotary positions")},
    )
