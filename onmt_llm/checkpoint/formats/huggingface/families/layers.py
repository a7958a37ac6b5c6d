"""The rows of what may differ between layers: sliding windows and rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from onmt_llm.checkpoint.export_guard import anything, where
from onmt_llm.checkpoint.formats.huggingface.families.base import HfConfig, Row, Values, required
from onmt_llm.config.model import LayerType, ModelConfig
from onmt_llm.errors import CheckpointError, UnsupportedError

FULL, SLIDING = get_args(LayerType)


def window(*, default: int | None = None, switch: str = "") -> Row:
    """The sliding window of all layers; null = none.

    Args:
        default: Its value where the key is not there.
        switch: Key that must be true for the window to count; "" = there is none.
    """
    keys = ("sliding_window", *([switch] if switch else []))

    def read(hf: HfConfig) -> Values:
        off = bool(switch) and not hf.get(switch, False)
        return {"sliding_window": None if off else hf.get("sliding_window", default)}

    def write(config: ModelConfig) -> Values:
        return dict(zip(keys, (config.sliding_window, config.sliding_window is not None), strict=False))

    return Row(keys, read, write, anything("sliding_window"))


def window_of_qwen() -> Row:
    """The sliding window of all layers but the first `max_window_layers`, unless `layer_types` says which."""

    def read(hf: HfConfig) -> Values:
        size = hf.get("sliding_window", 4096)
        if not hf.get("use_sliding_window", False) or size is None:
            return {"sliding_window": None}
        layers, first = int(required(hf, "num_hidden_layers")), int(hf.get("max_window_layers", 28))
        return _windows(size, _types(hf, [FULL if layer < first else SLIDING for layer in range(layers)]))

    return Row(("use_sliding_window", "max_window_layers", *_WRITTEN), read, _written_of_qwen, anything(*_WRITTEN))


def window_of_qwen2_moe() -> Row:
    """The sliding window of every second of the first `max_window_layers`, unless `layer_types` says which."""

    def read(hf: HfConfig) -> Values:
        size = hf.get("sliding_window", 4096) if hf.get("use_sliding_window", False) else None
        layers, end = int(required(hf, "num_hidden_layers")), int(hf.get("max_window_layers", 28))
        count = 0 if size is None else end
        return _windows(size, _types(hf, [SLIDING if i < count and i % 2 == 0 else FULL for i in range(layers)]))

    return Row(("use_sliding_window", "max_window_layers", *_WRITTEN), read, _written_of_qwen, anything(*_WRITTEN))


def windows(*, every: int, default: int = 4096) -> Row:
    """A sliding window in all layers but every n-th, unless `layer_types` says which.

    Args:
        every: The n of a `config.json` without `sliding_window_pattern`.
        default: The window of a `config.json` without `sliding_window`.
    """

    def read(hf: HfConfig) -> Values:
        return _windows(hf.get("sliding_window", default), _types_by_pattern(hf, every))

    keys = ("sliding_window_pattern", "_sliding_window_pattern", *_WRITTEN)
    return Row(keys, read, _written, anything(*_WRITTEN))


def rotary_within_windows(*, every: int) -> Row:
    """Layers with a sliding window have rotary positions, the others have none; see `windows`."""

    def read(hf: HfConfig) -> Values:
        return {"rope_layers": _unless_all([kind == SLIDING for kind in _types_by_pattern(hf, every)])}

    def holds(config: ModelConfig) -> bool:
        return _rotating(config) == [kind == SLIDING for kind in config.decoder_types]

    reason = ", but the layers with a sliding window must be those with rotary positions"
    return Row((), read, lambda config: {}, {"rope_layers": where(holds, reason)})


def rotary_layers() -> Row:
    """`no_rope_layers` is 1 (true) for layers that have rotary positions; without it, every n-th layer has none."""

    def read(hf: HfConfig) -> Values:
        layers, every = int(required(hf, "num_hidden_layers")), int(hf.get("no_rope_layer_interval", 4))
        given = hf.get("no_rope_layers") or [(layer + 1) % every != 0 for layer in range(layers)]
        return {"rope_layers": _unless_all([bool(entry) for entry in given[:layers]])}

    def write(config: ModelConfig) -> Values:
        return {"no_rope_layers": [int(entry) for entry in _rotating(config)]}

    return Row(("no_rope_layers", "no_rope_layer_interval"), read, write, anything("rope_layers"))


def windows_without_rotary() -> Row:
    """A sliding window in the layers without rotary positions, unless `layer_types` says which; see `rotary_layers`."""

    def read(hf: HfConfig) -> Values:
        size, layers = hf.get("sliding_window"), int(required(hf, "num_hidden_layers"))
        rotating = rotary_layers().read(hf)["rope_layers"] or [True] * layers
        is_on = bool(hf.get("use_sliding_window", False)) and size is not None
        return _windows(size, _types(hf, [SLIDING if is_on and not entry else FULL for entry in rotating]))

    def write(config: ModelConfig) -> Values:
        return {"use_sliding_window": config.sliding_window is not None, **_written(config)}

    return Row(("use_sliding_window", *_WRITTEN), read, write, anything(*_WRITTEN))


_WRITTEN = ("sliding_window", "layer_types")


def _written(config: ModelConfig) -> Values:
    return {"sliding_window": config.sliding_window, "layer_types": config.decoder_types}


def _written_of_qwen(config: ModelConfig) -> Values:
    first = next((i for i, kind in enumerate(config.decoder_types) if kind == SLIDING), config.decoder_layers)
    return {"use_sliding_window": config.sliding_window is not None, "max_window_layers": first, **_written(config)}


def _types_by_pattern(hf: HfConfig, every: int) -> list[LayerType]:
    every = int(hf.get("sliding_window_pattern") or every)
    layers = range(1, 1 + int(required(hf, "num_hidden_layers")))
    return _types(hf, [SLIDING if layer % every else FULL for layer in layers])


def _types(hf: HfConfig, default: Sequence[LayerType]) -> list[LayerType]:
    """`layer_types` of `config.json`, or where it has none, the default.

    Raises:
        CheckpointError: Its length is not the number of layers.
        UnsupportedError: It names another type of layer.
    """
    kinds = hf.get("layer_types") or default
    if len(kinds) != len(default):
        raise CheckpointError(
            f"layer_types in config.json must have num_hidden_layers = {len(default)} entries, but has {len(kinds)}."
        )
    others = sorted({str(kind) for kind in kinds} - {FULL, SLIDING})
    if others:
        raise UnsupportedError(
            f"layer_types in config.json must consist of {FULL} and {SLIDING}, but there is also {', '.join(others)}."
        )
    return list(kinds)


def _windows(size: int | None, kinds: Sequence[LayerType]) -> Values:
    """Settings of ours: a sliding window of `size` in the layers of that type."""
    if SLIDING not in kinds:
        return {"sliding_window": None}
    if size is None:
        raise UnsupportedError(
            f"sliding_window in config.json must be set, since {kinds.count(SLIDING)} layers are of type {SLIDING}, "
            "but is null."
        )
    return {"sliding_window": size, "layer_types": list(kinds) if FULL in kinds else []}


def _rotating(config: ModelConfig) -> list[bool]:
    return config.rope_layers or [True] * config.decoder_layers


def _unless_all(entries: list[bool]) -> list[bool]:
    return [] if all(entries) else entries
