"""Import and export peft adapters (adapter_config.json and adapter_model.safetensors).

peft names layers as transformers does; the rules of the model's family map them to ours. The operation of a rule (order
of rotary pairs; q, k and v in one matrix) acts on the rows of a weight, so it applies to the rows of B and to the
magnitudes of DoRA; A is unchanged. If several of our layers are one layer in transformers, ours may have different A:
their adapter then has the sum of the ranks, and B is block-diagonal.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onmt_llm.atomic import AtomicDirectory
from onmt_llm.checkpoint.adapters import adapter_spec, lora_variant, short_names
from onmt_llm.checkpoint.card import card_files
from onmt_llm.checkpoint.files.safetensors import SafetensorsSet, SafetensorsWriter
from onmt_llm.checkpoint.files.torch_pickle import TorchTensors
from onmt_llm.checkpoint.formats.huggingface.card import peft_card
from onmt_llm.checkpoint.formats.huggingface.write import family_for_export
from onmt_llm.checkpoint.formats.imported import TypedSource
from onmt_llm.checkpoint.formats.ops import Chain, Identity, Op, Transpose
from onmt_llm.checkpoint.formats.tokenizer_files import read_json
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.card import NOTHING_TO_ADD, CardOptions
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.nn.transformer import parameter_shapes

CONFIG_FILE, WEIGHTS_FILE, BIN_FILE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
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


@dataclass(frozen=True)
class PeftLayer:
    """A layer of the transformers model that can have an adapter.

    Attributes:
        theirs: Its path in the transformers model.
        ours: Our layers that it corresponds to.
        op: From the rows of its weight to those of ours.
    """

    theirs: str
    ours: tuple[str, ...]
    op: Op

    @property
    def is_embedding(self) -> bool:
        return self.ours[0].endswith("embed_tokens")


@dataclass(frozen=True)
class LayerAdapter:
    """The adapter of one layer: A (rank, in), B (out, rank), the scale, and DoRA's magnitudes (out,)."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


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
    spec, layers = adapter_spec(lora), _layers(lora.config)
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


def _layers(config: CheckpointConfig) -> list[PeftLayer]:
    """The layers of the transformers model that can have an adapter, from the rules of its family.

    A tensor without the ending of a layer's weight is not a layer there: gpt-oss' experts.
    """
    here, table = parameter_shapes(config.model), []
    for one in family_for_export(config.model, config.source).rules(config.model):
        matrices = all(name in here and len(here[name]) == 2 for name in one.ours)
        if matrices and len(one.theirs) == 1 and one.theirs[0].endswith(".weight"):
            ours = tuple(name.removesuffix(".weight") for name in one.ours)
            table.append(PeftLayer(one.theirs[0].removesuffix(".weight"), ours, _on_outputs(one.op)))
    return table


def _check_layers(lora: Checkpoint, layers: Sequence[PeftLayer]) -> None:
    known = {name for layer in layers for name in layer.ours}
    others = sorted({name.rpartition(".")[0] for name in lora.adapter_names()} - known)
    if others:
        raise UnsupportedError(
            f"peft must have a layer for each adapter of {lora.path}, but has none for {others[0]}"
            f"{f' and {len(others) - 1} others' if len(others) > 1 else ''}.",
            hint="-action merge makes a whole model",
        )


def _on_outputs(op: Op) -> Op:
    """The operation on a layer's outputs: how its matrix is stored does not concern A and B."""
    if isinstance(op, Chain):
        return Chain(tuple(_on_outputs(one) for one in op.ops))
    return Identity() if isinstance(op, Transpose) else op


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
    table = {layer.theirs: layer for layer in _layers(base.config)}
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
        raise _tied(str(folder))
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
    sizes = {name: _size(part, rslora) for layer, part in found for name in layer.ours}
    (rank, alpha), ranks, alphas = _most_common(sizes)
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


def _size(part: LayerAdapter, rslora: bool) -> tuple[int, float]:
    """Rank, and the alpha that yields the adapter's scale."""
    rank = part.a.shape[0]
    return rank, round(part.scale * (math.sqrt(rank) if rslora else rank), 9)


def _most_common(sizes: Mapping[str, tuple[int, float]]) -> tuple[tuple[int, float], dict[str, int], dict[str, float]]:
    """The most common rank and alpha, and the layers with others."""
    usual = Counter(sizes.values()).most_common(1)[0][0]
    ranks = {name: rank for name, (rank, _) in sizes.items() if rank != usual[0]}
    alphas = {name: alpha for name, (_, alpha) in sizes.items() if alpha != usual[1]}
    return usual, ranks, alphas


def _their_adapter(
    layer: PeftLayer, lora: Checkpoint, spec: AdapterSpec, shapes: Mapping[str, tuple[int, ...]]
) -> LayerAdapter | None:
    """The adapter of one of their layers; None if none of our corresponding layers has one."""
    parts = [_our_adapter(name, lora, spec) for name in layer.ours]
    there = [part for part in parts if part is not None]
    if not there:
        return None
    if layer.is_embedding and lora.config.model.tie_embeddings:
        raise _tied(str(lora.path))
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
    sizes = {layer.theirs: _size(part, spec.rslora) for layer, part in found}
    (rank, alpha), ranks, alphas = _most_common(sizes)
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


def _tied(where: str) -> UnsupportedError:
    return UnsupportedError(
        f"An adapter must not be on an embedding that is tied to the output layer, but that of {where} is: peft adapts "
        "the embedding only, while here the two stay tied."
    )
