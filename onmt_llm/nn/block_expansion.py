"""Block expansion: train new blocks next to a model's frozen blocks, or between them.

- Twins (Control LLM, Wei et al. 2025): a block and its twin, a trained copy, read the same hidden states, and their
  outputs are mixed: base + share * (twin - base).
- A taller stack (LLaMA Pro, Wu et al. 2024): some blocks are followed by a copy with output projections of zero, which
  adds nothing to the residual stream until it is trained. The result is an ordinary, deeper model.

In both cases the new model initially computes what the old one did, to the bit. Blocks are named by their paths in the
old model, e.g. `decoder.layers.3`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn import wrap
from onmt_llm.nn.layers.attention import Alignment, Attention
from onmt_llm.nn.layers.block import Block, BlockContext
from onmt_llm.nn.layers.latent_attention import LatentAttention
from onmt_llm.nn.transformer import Transformer

ExpansionType = Literal["concat", "stack"]
TWIN = "twin"
_OUTPUTS = ("o_proj", "down_proj")


class TwinBlock(nn.Module):
    """A frozen block and its twin, in place of the block.

    Args:
        base: The block; it becomes the frozen module `base`.
        share: Weight of the twin in the mean of the two outputs.

    Attributes:
        disabled: Return the output of the base alone.
        recorded: Receives the outputs (B, T, D) of base and twin of each call; see `recorded_outputs`.
    """

    recorded: list[tuple[Tensor, Tensor]] | None = None

    def __init__(self, base: Block, share: float) -> None:
        super().__init__()
        self.twin = copy.deepcopy(base).requires_grad_(True)
        self.base = base.requires_grad_(False)
        self.share, self.disabled = share, False

    def forward(self, x_BTD: Tensor, context: BlockContext, align: Alignment | None = None) -> Tensor:
        """As `Block`; `align` receives the mean of the two attentions."""
        base_BTD = self.base(x_BTD, context, align)
        if self.disabled:
            return base_BTD
        own = None if align is None else replace(align)
        twin_BTD = self.twin(x_BTD, context, own)
        if align is not None and own is not None:
            assert align.weights_BTS is not None and own.weights_BTS is not None
            align.weights_BTS = torch.lerp(align.weights_BTS, own.weights_BTS, self.share)
        if self.recorded is not None:
            self.recorded.append((base_BTD, twin_BTD))
        return torch.lerp(base_BTD, twin_BTD.to(base_BTD.dtype), self.share)

    def extra_repr(self) -> str:
        return f"share={self.share:g}"


def add_twins(model: Transformer, blocks: Sequence[str], share: float) -> None:
    """Replace each of `blocks` by a `TwinBlock`; the caller freezes everything else.

    Args:
        model: Changed in place; the twins start as copies of its blocks.
        blocks: Paths of blocks.
        share: Weight of each twin.

    Raises:
        ConfigError: There is no such block.
    """
    wrap.replace(model, blocks, lambda block, _: TwinBlock(block, share))  # type: ignore[arg-type]
    layers = [] if model.decoder is None else list(model.decoder.layers)
    pairs = [layer for layer in layers if isinstance(layer, TwinBlock)]
    for place, pair in enumerate(pairs, start=len(layers)):
        _set_cache_layer(pair.twin, place)


def twins(model: nn.Module) -> dict[str, TwinBlock]:
    """Twin blocks by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, TwinBlock)}


@contextmanager
def recorded_outputs(model: nn.Module) -> Iterator[Sequence[tuple[Tensor, Tensor]]]:
    """A context in which the list receives the outputs of base and twin of each pair, in the order of computation."""
    pairs = list(twins(model).values())
    outputs: list[tuple[Tensor, Tensor]] = []
    try:
        for pair in pairs:
            pair.recorded = outputs
        yield outputs
    finally:
        for pair in pairs:
            pair.recorded = None


def twin_state(model: nn.Module) -> dict[str, Tensor]:
    """The twins' tensors by their names in the model: `decoder.layers.3.twin.mlp.up_proj.weight`."""
    return {
        f"{path}.{TWIN}.{name}": parameter.detach()
        for path, pair in twins(model).items()
        for name, parameter in pair.twin.named_parameters()
    }


@torch.no_grad()
def stack_blocks(model: Transformer, blocks: Sequence[str]) -> None:
    """Insert after each of `blocks` a copy that adds nothing yet; `model.config` gets the new depth.

    Args:
        model: One with `norm_position: pre`; changed in place.
        blocks: Paths of blocks.
    """
    model.config = expanded_config(model.config, blocks)
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        if stack is None:
            continue
        taller = nn.ModuleList()
        for number, block in enumerate(stack.layers):
            taller.append(block)
            if f"{name}.layers.{number}" in blocks:
                taller.append(_zero_outputs(copy.deepcopy(block)))
        for place, block in enumerate(taller):
            _set_cache_layer(block, place)
        stack.layers = taller


def stacked_paths(blocks: Sequence[str]) -> list[str]:
    """Paths of the new blocks in the deeper model, from the ordered paths of the blocks that they follow."""
    paths, before = [], dict.fromkeys((block.rpartition(".")[0] for block in blocks), 0)
    for block in blocks:
        stack, _, number = block.rpartition(".")
        before[stack] += 1
        paths.append(f"{stack}.{int(number) + before[stack]}")
    return paths


def expanded_config(config: ModelConfig, blocks: Sequence[str], *, sign: Literal[1, -1] = 1) -> ModelConfig:
    """The config with a new block after each of `blocks`; with `sign` -1, the config without these."""
    added = {name: sum(block.startswith(name) for block in blocks) for name in ("encoder", "decoder")}
    return config.model_copy(
        update={
            "encoder_layers": config.encoder_layers + sign * added["encoder"],
            "decoder_layers": config.decoder_layers + sign * added["decoder"],
            "moe": config.moe.model_copy(update={"dense_layers": _dense_layers(config, blocks, sign)}),
            **{name: _by_layer(config, name, blocks, sign) for name in ("layer_types", "rope_layers")},
        }
    )


def _by_layer(config: ModelConfig, name: str, blocks: Sequence[str], sign: Literal[1, -1]) -> list[Any]:
    """A list with an entry for each decoder layer, of the model with or without the new blocks."""
    entries, origins = getattr(config, name), _origins(config, blocks, sign)
    if not entries or sign == 1:
        return [entries[origin] for origin in origins] if entries else []
    return [entries[origins.index(layer)] for layer in dict.fromkeys(origins)]


def _dense_layers(config: ModelConfig, blocks: Sequence[str], sign: Literal[1, -1]) -> list[int]:
    """`moe.dense_layers` of the model with or without the new blocks."""
    dense, origins = config.moe.dense_layers, _origins(config, blocks, sign)
    if sign == 1:
        return [layer for layer, origin in enumerate(origins) if origin in dense]
    return sorted({origin for layer, origin in enumerate(origins) if layer in dense})


def _origins(config: ModelConfig, blocks: Sequence[str], sign: Literal[1, -1]) -> list[int]:
    """The layer of the shallow model that each decoder layer of the deep one is or copies; see `expanded_config`."""
    doubled = [int(block.rpartition(".")[2]) for block in blocks if block.startswith("decoder")]
    shallow = config.decoder_layers - (len(doubled) if sign == -1 else 0)
    return [layer for layer in range(shallow) for _ in range(2 if layer in doubled else 1)]


def new_blocks(blocks: Sequence[str], kind: ExpansionType) -> list[str]:
    """Paths of all new modules in the expanded model."""
    return [f"{block}.{TWIN}" for block in blocks] if kind == "concat" else stacked_paths(blocks)


def freeze_all_but(model: nn.Module, paths: Sequence[str]) -> None:
    """Leave only the modules at `paths` trainable."""
    model.requires_grad_(False)
    for path in paths:
        model.get_submodule(path).requires_grad_(True)


def _zero_outputs(block: nn.Module) -> nn.Module:
    """Set the output projections of the block to zero."""
    for name, module in block.named_modules():
        if name.endswith(_OUTPUTS):
            for parameter in module.parameters():
                parameter.zero_()
    return block


def _set_cache_layer(block: nn.Module, place: int) -> None:
    """Set the layer of the KV cache that this block uses."""
    for module in block.modules():
        if isinstance(module, Attention | LatentAttention):
            module.layer = place
