"""Merge an adapter, or the twins of expanded blocks, into its base; or store an adapter beside the base, unmerged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from onmt_llm.checkpoint.adapters import adapter_spec, check_twins, expansion_spec, lora_variant, twin_name
from onmt_llm.checkpoint.files.blocks import with_rows
from onmt_llm.checkpoint.load import check_base
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import CheckpointConfig, ExpansionSpec
from onmt_llm.config.model import Dtype
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.nn.device import DTYPES
from onmt_llm.nn.lora.dora import rescale_rows
from onmt_llm.nn.lora.init import removed_product
from onmt_llm.nn.lora.layers import add_product
from onmt_llm.nn.lora.variant import INITIAL_TENSORS, TRAINED_TENSORS

_MOST_ROUNDING = 0.25
"""Rounding, relative to the changes of an adapter, above which merging says so."""


def merge(
    base: str | Path,
    addition: str | Path,
    output: str | Path,
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Merge an adapter (`merge_lora`) or an expansion (`merge_twins`) into its base."""
    action = merge_twins if isinstance(Checkpoint.open(addition).config.addition, ExpansionSpec) else merge_lora
    return action(base, addition, output, dtype=dtype, overwrite=overwrite)


def merge_lora(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Merge an adapter into the weights of its base: W + scale * B A, computed in float32 and rounded to a type.

    A warning says how much of what the adapter changes is lost if its changes are as small as the rounding.

    For PiSSA and LoftQ, the initial product is subtracted from W first. With DoRA, the rows then get their trained
    magnitudes.

    The weights of the base are used in full precision, even if its layers were quantised during training. Special
    tokens, template and stop strings are those of the adapter.

    Args:
        base: The checkpoint that the adapter was trained on.
        adapter: The adapter, alone or beside its base.
        output: The checkpoint to write.
        dtype: Type of the written weights; None = that of the base.
        overwrite: Replace a checkpoint at `output`.

    Raises:
        CheckpointError: The base is another one, layers don't fit, or the output exists.
    """
    whole, lora = _open_pair(base, adapter)
    layers = {name.rpartition(".")[0] for name in lora.adapter_names()}
    model = whole.config.model if dtype is None else whole.config.model.model_copy(update={"dtype": dtype})
    rounding = _Rounding()

    def merged(name: str) -> Iterable[torch.Tensor]:
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or layer not in layers:
            return whole.blocks(name)
        target = whole.dtype(name) if dtype is None else DTYPES[dtype]
        return (rounding.to(target, *blocks) for blocks in _merged_blocks(whole, lora, layer))

    config = _merged_config(whole, lora, with_adapter=False).model_copy(update={"model": model})
    with CheckpointWriter(output, config, overwrite=overwrite) as writer:
        _write_model(writer, whole, merged, dtype=dtype, texts=(whole, _text_source(whole, lora)))
    if rounding.share > _MOST_ROUNDING:
        logger.warning(
            "Rounding the merged weights to %s changes them by %.0f%% of what the adapter does (root mean square), so "
            "the merged model is a little less trained: -dtype fp32 keeps all of it, for a release too.",
            *(model.dtype, 100 * rounding.share),
        )
    return Path(output)


def merge_twins(
    base: str | Path,
    expansion: str | Path,
    output: str | Path,
    *,
    dtype: Dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Interpolate the weights of blocks and their twins, as training interpolated their hidden states.

    The result has the base's shape, but only approximates the trained model: interpolated weights do not compute
    interpolated hidden states. The closer the twins are to their blocks, the better the approximation.

    Args:
        base: The checkpoint that was expanded.
        expansion: The expansion's checkpoint.
        output: The checkpoint to write.
        dtype: Type of the written weights; None = that of the base.
        overwrite: Replace a checkpoint at `output`.

    Raises:
        CheckpointError: The base is another one, the twins don't fit it, or the output exists.
    """
    whole, twins = _open_base(base), Checkpoint.open(expansion)
    spec = expansion_spec(twins)
    check_base(whole, twins)
    check_twins(twins, {name: whole.shape(name) for name in whole.model_names()})
    source = f"{whole.config.source or whole.path.name} + twins {twins.path.name}"
    model = whole.config.model if dtype is None else whole.config.model.model_copy(update={"dtype": dtype})
    config = twins.config.model_copy(update={"model": model, "expansion": None, "source": source})

    def interpolated(name: str) -> Iterable[torch.Tensor]:
        blocks, twin = whole.blocks(name), twin_name(name, spec.blocks)
        return blocks if twin is None else _interpolated_blocks(blocks, twins.tensor(twin), spec.lerp)

    with CheckpointWriter(output, config, overwrite=overwrite) as writer:
        _write_model(writer, whole, interpolated, dtype=dtype, texts=(whole, twins))
    logger.warning(
        "The weights of %d blocks and their twins are interpolated (lerp %g), where training interpolated their hidden "
        "states: the merged model approximates the trained one. Compare the two, e.g. with onmt_llm_eval perplexity.",
        *(len(spec.blocks), spec.lerp),
    )
    return Path(output)


def concat_lora(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Store an adapter unmerged beside the weights of its base, in one checkpoint to run or to continue training.

    Arguments and errors are those of `merge_lora`, but the weights keep their type.
    """
    whole, lora = _open_pair(base, adapter)
    config = _merged_config(whole, lora, with_adapter=True)
    with CheckpointWriter(output, config, overwrite=overwrite) as writer:
        _write_model(writer, whole, whole.blocks, texts=(whole, _text_source(whole, lora)))
        for name in lora.adapter_names():
            writer.add(name, lora.tensor(name))
    return Path(output)


def _write_model(
    writer: CheckpointWriter,
    base: Checkpoint,
    blocks: Callable[[str], Iterable[torch.Tensor]],
    *,
    dtype: Dtype | None = None,
    texts: Sequence[Checkpoint],
) -> None:
    """Write all tensors of `base`, with the values that `blocks` gives for each name, and the text files of `texts`."""
    with base.progress("merge") as progress:
        for name in base.model_names():
            target = base.dtype(name) if dtype is None else DTYPES[dtype]
            rounded = (block.to(target) for block in blocks(name))
            writer.add_blocks(name, rounded, dtype=target, shape=base.shape(name))
            progress.add(base.nbytes(name))
    copy_files(writer, *texts)


class _Rounding:
    """Rounds merged weights, and compares the rounding with what the adapter changes.

    Attributes:
        share: Root mean square of the rounding, relative to that of the changes.
    """

    def __init__(self) -> None:
        self._rounding = self._change = 0.0

    @property
    def share(self) -> float:
        return math.sqrt(self._rounding / self._change) if self._change else 0.0

    def to(self, dtype: torch.dtype, merged: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """Merged weights, in float32, in the type `dtype`; `block` has the weights without the adapter."""
        rounded = merged.to(dtype)
        self._rounding += float((rounded.float() - merged).square().sum())
        self._change += float((merged - block.float()).square().sum())
        return rounded


def _merged_blocks(base: Checkpoint, lora: Checkpoint, layer: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The weight of `layer` with its adapter merged, in float32, and without it: in blocks of rows.

    It is (out, in) of a linear layer, or (tokens, size) of an embedding, whose adapter applies to the transpose: with
    DoRA its norms are over all tokens, so all of it is in memory.
    """
    spec, stored, name = adapter_spec(lora), set(lora.adapter_names()), f"{layer}.weight"
    names = (*TRAINED_TENSORS, *INITIAL_TENSORS)
    own = {name: lora.tensor(f"{layer}.{name}") for name in names if f"{layer}.{name}" in stored}
    _, scale = lora_variant(spec).size(layer, spec.rank, spec.alpha)
    share = removed_product(own, init=spec.init, quantised=False)
    products = [*([] if share is None else [(*share, -scale)]), (own["lora_a"], own["lora_b"], scale)]
    magnitude, is_embedding = own.get("lora_magnitude"), _is_embedding(layer)
    blocks = [base.tensor(name)] if is_embedding and magnitude is not None else base.blocks(name)
    for rows, block in with_rows(blocks):
        merged = block.float().t() if is_embedding else block.float()
        for a, b, factor in products:
            merged = add_product(merged, a[:, rows] if is_embedding else a, b if is_embedding else b[rows], factor)
        if magnitude is not None:
            merged = rescale_rows(merged, magnitude if is_embedding else magnitude[rows])
        yield merged.t() if is_embedding else merged, block


def _interpolated_blocks(blocks: Iterable[torch.Tensor], twin: torch.Tensor, share: float) -> Iterator[torch.Tensor]:
    """Interpolate between a tensor, given in blocks of rows, and its twin; `share` is the weight of the twin."""
    for rows, block in with_rows(blocks):
        yield torch.lerp(block.float(), twin[rows].float(), share)


def _is_embedding(layer: str) -> bool:
    return layer.endswith("embed_tokens")


def _open_pair(base: str | Path, adapter: str | Path) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints, checked to belong together by fingerprint and by shape."""
    whole, lora = _open_base(base), Checkpoint.open(adapter)
    if isinstance(lora.config.addition, ExpansionSpec):
        raise CheckpointError(
            f"The LoRA weights must be an adapter, but {lora.path} is a {lora.config.noun}.",
            hint="-action merge merges it into its base",
        )
    if not lora.has_adapter:
        raise CheckpointError(f"The LoRA weights must be an adapter, but {lora.path} is a whole model.")
    check_base(whole, lora)
    problems = _misfits({name: whole.shape(name) for name in whole.model_names()}, lora)
    if problems:
        raise CheckpointError(f"The adapter {lora.path} does not fit {whole.path}:\n  " + "\n  ".join(problems))
    return whole, lora


def _open_base(base: str | Path) -> Checkpoint:
    whole = Checkpoint.open(base)
    if whole.is_adapter:
        raise CheckpointError(
            f"The base must be a whole model, but {whole.path} is a {whole.config.noun}.",
            hint="are base and adapter swapped?",
        )
    return whole


def _misfits(weights: Mapping[str, tuple[int, ...]], lora: Checkpoint) -> list[str]:
    """All layers of the adapter that the base lacks or has with another size."""
    here = set(lora.adapter_names())
    problems = []
    for layer in sorted({name.rpartition(".")[0] for name in here}):
        weight = weights.get(f"{layer}.weight")
        if not {f"{layer}.lora_a", f"{layer}.lora_b"} <= here:
            problems.append(f"{layer} must have both lora_a and lora_b")
            continue
        a, b = lora.shape(f"{layer}.lora_a"), lora.shape(f"{layer}.lora_b")
        product = (b[0], a[1])
        wanted = product[::-1] if _is_embedding(layer) else product
        if weight != wanted or a[0] != b[1]:
            problems.append(
                f"{layer}: lora_a {list(a)} and lora_b {list(b)} do not fit {list(weight) if weight else 'no weight'}"
            )
    return problems


def _merged_config(base: Checkpoint, adapter: Checkpoint, *, with_adapter: bool) -> CheckpointConfig:
    """The base's architecture, with the text settings of `_text_source`."""
    return _text_source(base, adapter).config.model_copy(
        update={
            "model": base.config.model,
            "adapter": adapter.config.adapter if with_adapter else None,
            "source": f"{base.config.source or base.path.name} + LoRA {adapter.path.name}",
        }
    )


def _text_source(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """The checkpoint whose tokeniser, template and stop strings count: the adapter's, unless OpenNMT-py wrote it."""
    return adapter if adapter_spec(adapter).base_fingerprint else base


def copy_files(writer: CheckpointWriter, *checkpoints: Checkpoint) -> None:
    """Copy vocabulary, tokeniser and template; a later checkpoint's files replace those of an earlier one."""
    files = {file.name: file for checkpoint in checkpoints for file in checkpoint.files()}
    for name, file in files.items():
        writer.add_file(file, name)
