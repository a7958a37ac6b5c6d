"""Import a peft adapter as an adapter checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onmt_llm.checkpoint.adapters import short_names
from onmt_llm.checkpoint.files.safetensors import SafetensorsSet
from onmt_llm.checkpoint.files.torch_pickle import TorchTensors
from onmt_llm.checkpoint.formats.imported import TypedSource
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
from onmt_llm.checkpoint.formats.tokenizer_files import read_json
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.nn.transformer import parameter_shapes

BIN_FILE = "adapter_model.bin"
_ENDINGS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
}
_BASE_COPY = ".base_layer.weight"
_REFUSED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None,),
    "layer_replication": (None, []),
    "lora_bias": (False,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
    "megatron_config": (None,),
}
"""peft settings that change what a layer computes, with the values that do not."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def import_peft(folder: str | Path, base: str | Path, output: str | Path, *, overwrite: bool = False) -> Path:
    """Write a peft adapter as a checkpoint.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors (or .bin).
        base: Checkpoint of the model that it was trained on.
        output: The adapter checkpoint to write.
        overwrite: Replace a checkpoint at `output`.

    Raises:
        CheckpointError: Files are missing, or layers do not fit the base; lists all of them.
        UnsupportedError: The adapter computes something that is not supported.
    """
    folder, whole = Path(folder), Checkpoint.open(base)
    if whole.is_adapter:
        raise CheckpointError(f"The base must be a whole model, but {whole.path} is an adapter.")
    settings = read_json(folder / CONFIG_FILE)
    _check_settings(settings, folder)
    found = _read_parts(settings, _open_weights(folder), whole, folder)
    tensors = {name: tensor for layer, part in found for name, tensor in _our_tensors(layer, part)}
    spec = _our_spec(settings, found, whole)
    source = " + ".join(filter(None, (whole.config.source, f"peft, {folder.name}")))
    config = whole.config.model_copy(update={"adapter": spec, "source": source})
    with CheckpointWriter(output, config, overwrite=overwrite) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        for file in whole.files():
            writer.add_file(file, file.name)
    return Path(output)


def _check_settings(settings: Mapping[str, Any], folder: Path) -> None:
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"A peft adapter must have peft_type LORA, but {folder} has {kind}.")
    odd = [f"{key}: {settings[key]}" for key, plain in _REFUSED.items() if settings.get(key, plain[0]) not in plain]
    if odd:
        raise UnsupportedError(f"The adapter {folder} has unsupported settings: {', '.join(odd)}.")
    init = str(settings.get("init_lora_weights", True))
    if init.startswith(_CHANGES_BASE):
        raise UnsupportedError(
            f"The adapter {folder} must fit the unchanged base, but init_lora_weights: {init} has changed that base.",
            hint="save it with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def _open_weights(folder: Path) -> TypedSource:
    if (folder / BIN_FILE).is_file() and not (folder / WEIGHTS_FILE).is_file():
        return TorchTensors.open([folder / BIN_FILE])
    return SafetensorsSet(folder, [WEIGHTS_FILE])


def _read_parts(
    settings: Mapping[str, Any], source: TypedSource, base: Checkpoint, folder: Path
) -> list[tuple[PeftLayer, LayerAdapter]]:
    model, shapes = base.config.model, parameter_shapes(base.config.model)
    table = {layer.theirs: layer for layer in peft_layers(base.config)}
    tensors: dict[str, dict[str, Tensor]] = {}
    problems = []
    for name in source.names():
        ending = next((ending for ending in _ENDINGS if name.endswith(ending)), None)
        path = name.removeprefix(PREFIX).removesuffix(ending or "")
        if name.endswith(_BASE_COPY) and _is_copy_of_base(source, name, table, base):
            continue
        if ending is None or path not in table:
            problems.append(f"not a layer of the base: {name}")
        else:
            tensors.setdefault(path, {})[_ENDINGS[ending]] = source.tensor(name).float()
    wanted = {"a", "b", *(["magnitude"] if settings.get("use_dora") else [])}
    for path, own in tensors.items():
        problems += _misfit(table[path], own, wanted, shapes)
    if problems or not tensors:
        raise CheckpointError(
            f"The adapter {folder} does not fit its base:\n  " + "\n  ".join(problems or ["it holds no tensors"])
        )
    if model.tie_embeddings and any(table[path].is_embedding for path in tensors):
        raise tied_embedding(str(folder))
    found = []
    for path, own in tensors.items():
        scale = _scale(settings, path, own["a"].shape[0])
        found.append((table[path], LayerAdapter(own["a"], own["b"], scale, own.get("magnitude"))))
    return found


def _is_copy_of_base(source: TypedSource, name: str, table: Mapping[str, PeftLayer], base: Checkpoint) -> bool:
    """Whether the tensor is a copy of the base's: peft stores the embeddings that it adapts completely."""
    layer = table.get(name.removeprefix(PREFIX).removesuffix(_BASE_COPY))
    if layer is None or len(layer.ours) > 1:
        return False
    weight = base.tensor(f"{layer.ours[0]}.weight")
    copy = source.tensor(name)
    return copy.shape == weight.shape and torch.equal(copy.to(weight.dtype), weight)


def _misfit(
    layer: PeftLayer, own: Mapping[str, Tensor], wanted: set[str], weights: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Missing tensors of a layer, or sizes that differ from the base's."""
    if own.keys() != wanted:
        return [f"{layer.theirs} must have {', '.join(sorted(wanted))}, but has {', '.join(sorted(own))}"]
    shapes = [weights[f"{name}.weight"] for name in layer.ours]
    outputs, inputs = sum(shape[0] for shape in shapes), shapes[0][1]
    if layer.is_embedding:
        outputs, inputs = inputs, outputs
    a, b = own["a"], own["b"]
    if a.shape[1] != inputs or b.shape[0] != outputs or a.shape[0] != b.shape[1]:
        return [f"{layer.theirs}: A {list(a.shape)} and B {list(b.shape)} do not fit a layer {inputs} -> {outputs}"]
    return []


def _scale(settings: Mapping[str, Any], path: str, rank: int) -> float:
    """Scale of the layer's adapter; patterns are regular expressions for the end of its path."""
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    meant = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", path))
    alpha = float(next(meant, settings.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _our_tensors(layer: PeftLayer, part: LayerAdapter) -> list[tuple[str, Tensor]]:
    rows = layer.op.forward([part.b])
    lengths = [None] * len(rows) if part.magnitude is None else layer.op.forward([part.magnitude])
    tensors = []
    for name, b, magnitude in zip(layer.ours, rows, lengths, strict=True):
        tensors += [(f"{name}.lora_a", part.a.clone()), (f"{name}.lora_b", b.contiguous())]
        if magnitude is not None:
            tensors.append((f"{name}.lora_magnitude", magnitude.contiguous()))
    return tensors


def _our_spec(
    settings: Mapping[str, Any], found: Sequence[tuple[PeftLayer, LayerAdapter]], base: Checkpoint
) -> AdapterSpec:
    rslora = bool(settings.get("use_rslora", False))
    sizes = {name: adapter_size(part, rslora) for layer, part in found for name in layer.ours}
    (rank, alpha), ranks, alphas = most_common(sizes)
    layers = [name for layer, _ in found if not layer.is_embedding for name in layer.ours]
    return AdapterSpec(
        rank=rank,
        alpha=alpha,
        dropout=float(settings.get("lora_dropout", 0.0)),
        layers=short_names(layers, base.model_names()),
        embedding=any(layer.is_embedding for layer, _ in found),
        rslora=rslora,
        dora=bool(settings.get("use_dora", False)),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        base=str(base.path.resolve()),
        base_fingerprint=base.fingerprint,
    )
