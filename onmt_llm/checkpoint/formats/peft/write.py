"""Export an adapter checkpoint for peft."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onmt_llm.atomic import AtomicDirectory
from onmt_llm.checkpoint.adapters import adapter_spec, lora_variant, short_names
from onmt_llm.checkpoint.card import card_files
from onmt_llm.checkpoint.files.safetensors import SafetensorsWriter
from onmt_llm.checkpoint.formats.huggingface.card import peft_card
from onmt_llm.checkpoint.formats.peft.layers import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    LayerAdapter,
    PeftLayer,
    adapter_size,
    most_common,
    peft_layers,
    tied_embedding,
)
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.card import NOTHING_TO_ADD, CardOptions
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.errors import UnsupportedError
from onmt_llm.nn.transformer import parameter_shapes


def export_peft(
    adapter: str | Path,
    output: str | Path,
    *,
    base_name: str | None = None,
    card: CardOptions = NOTHING_TO_ADD,
    overwrite: bool = False,
) -> Path:
    """Write an adapter for peft, in float32, with a model card.

    PiSSA and LoftQ become plain LoRA of twice the rank, so the base is used unchanged.

    Args:
        adapter: The adapter's checkpoint.
        output: The folder to write.
        base_name: The base that peft loads: a name on the Hugging Face Hub, or a folder.
        card: What the model card says besides the facts in the checkpoint.
        overwrite: Replace an adapter at `output`.

    Raises:
        CheckpointError: It is not an adapter, or the output exists.
        UnsupportedError: transformers has no such model, or peft no such adapter.
    """
    lora = Checkpoint.open(adapter)
    spec, layers = adapter_spec(lora), peft_layers(lora.config)
    shapes = parameter_shapes(lora.config.model)
    _check_layers(lora, layers)
    found = [(layer, part) for layer in layers if (part := _their_adapter(layer, lora, spec, shapes)) is not None]
    config = _their_settings(lora, found, [layer.theirs for layer in layers], base_name)
    with AtomicDirectory(output, overwrite=overwrite) as directory:
        with directory.translated_errors(), SafetensorsWriter(directory.directory / WEIGHTS_FILE) as writer:
            for layer, part in found:
                for ending, tensor in _their_tensors(layer, part).items():
                    writer.add(f"{PREFIX}{layer.theirs}{ending}", tensor.float())
        directory.add_text(CONFIG_FILE, json.dumps(config, indent=2) + "\n")
        for name, text in card_files(lora, Path(output), peft_card(lora.config, base_name), card).items():
            directory.add_text(name, text)
    return Path(output)


def _check_layers(lora: Checkpoint, layers: Sequence[PeftLayer]) -> None:
    known = {name for layer in layers for name in layer.ours}
    others = sorted({name.rpartition(".")[0] for name in lora.adapter_names()} - known)
    if others:
        raise UnsupportedError(
            f"peft must have a layer for each adapter of {lora.path}, but has none for {others[0]}"
            f"{f' and {len(others) - 1} others' if len(others) > 1 else ''}.",
            hint="-action merge makes a whole model",
        )


def _their_adapter(
    layer: PeftLayer, lora: Checkpoint, spec: AdapterSpec, shapes: Mapping[str, tuple[int, ...]]
) -> LayerAdapter | None:
    """The adapter of one of their layers; None if none of our corresponding layers has one."""
    parts = [_our_adapter(name, lora, spec) for name in layer.ours]
    there = [part for part in parts if part is not None]
    if not there:
        return None
    if layer.is_embedding and lora.config.model.tie_embeddings:
        raise tied_embedding(str(lora.path))
    if spec.dora and len(there) < len(parts):
        raise UnsupportedError(
            f"With DoRA, all of {', '.join(layer.ours)} must have an adapter, since they are one layer in peft "
            f"({layer.theirs}), but only some have one."
        )
    rows = [shapes[f"{name}.weight"][0] for name in layer.ours]
    joined = there[0] if len(parts) == 1 else _joined(parts, rows)
    lengths = [part.magnitude for part in there if part.magnitude is not None]
    return LayerAdapter(
        joined.a,
        layer.op.backward(joined.b.split(rows) if len(parts) > 1 else [joined.b])[0],
        joined.scale,
        layer.op.backward(lengths)[0] if lengths else None,
    )


def _their_tensors(layer: PeftLayer, part: LayerAdapter) -> dict[str, Tensor]:
    """A, B and magnitudes by the endings of their names."""
    a, b = (".lora_embedding_A", ".lora_embedding_B") if layer.is_embedding else (".lora_A.weight", ".lora_B.weight")
    lengths = {} if part.magnitude is None else {".lora_magnitude_vector": part.magnitude}
    return {a: part.a, b: part.b, **lengths}


def _our_adapter(name: str, lora: Checkpoint, spec: AdapterSpec) -> LayerAdapter | None:
    """The adapter of one of our layers; an initial product (PiSSA, LoftQ) is subtracted by additional ranks."""
    here = set(lora.adapter_names())
    if f"{name}.lora_a" not in here:
        return None
    read: Callable[[str], Tensor | None] = lambda leaf: lora.tensor(leaf).float() if leaf in here else None  # noqa: E731
    a, b, magnitude = read(f"{name}.lora_a"), read(f"{name}.lora_b"), read(f"{name}.lora_magnitude")
    start_a, start_b = read(f"{name}.lora_start_a"), read(f"{name}.lora_start_b")
    assert a is not None and b is not None
    if start_a is not None and start_b is not None:
        a, b = torch.cat([a, start_a]), torch.cat([b, -start_b], dim=1)
    return LayerAdapter(a, b, lora_variant(spec).size(name, spec.rank, spec.alpha)[1], magnitude)


def _joined(parts: Sequence[LayerAdapter | None], rows: Sequence[int]) -> LayerAdapter:
    """Combine the adapters of several layers with one input into that of a layer with all their rows."""
    there = [part for part in parts if part is not None]
    scale = there[0].scale
    if len(there) == len(parts) and all(p.scale == scale and torch.equal(p.a, there[0].a) for p in there):
        return LayerAdapter(there[0].a, torch.cat([part.b for part in there]), scale)
    rank = sum(part.a.shape[0] for part in there)
    b = there[0].b.new_zeros(sum(rows), rank)
    row = column = 0
    for part, height in zip(parts, rows, strict=True):
        if part is not None:
            width = part.a.shape[0]
            b[row : row + height, column : column + width] = part.b * (part.scale / scale)
            column += width
        row += height
    return LayerAdapter(torch.cat([part.a for part in there]), b, scale)


def _their_settings(
    lora: Checkpoint, found: Sequence[tuple[PeftLayer, LayerAdapter]], every: Sequence[str], base_name: str | None
) -> dict[str, Any]:
    spec = adapter_spec(lora)
    sizes = {layer.theirs: adapter_size(part, spec.rslora) for layer, part in found}
    (rank, alpha), ranks, alphas = most_common(sizes)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if lora.config.model.is_decoder_only else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": spec.dropout,
        "target_modules": short_names([layer.theirs for layer, _ in found], every),
        "rank_pattern": {re.escape(name): value for name, value in ranks.items()},
        "alpha_pattern": {re.escape(name): value for name, value in alphas.items()},
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
