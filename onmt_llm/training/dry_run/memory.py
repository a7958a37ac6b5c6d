"""Estimate the memory of a training run from the shapes of its tensors, without allocating a weight."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from onmt_llm.config.model import ModelConfig
from onmt_llm.config.train import DeviceConfig
from onmt_llm.nn.quantized import QUANT_TYPES
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.dry_run.activations import ActivationEstimate
from onmt_llm.training.losses.output_layer import default_chunk_tokens, output_parameters
from onmt_llm.training.optim.registry import OPTIMIZERS
from onmt_llm.training.parallel import sharded_dimension

MIB = 1 << 20
GRADIENT_BYTES = 4
# `KahanAdamW`: one moment and the rounding error of each weight in bf16, the other moment in float32.
KAHAN_BYTES = 8.0
KAHAN_COPIES = 5
TRAINED_BYTES = 4
_IN_BLOCK = re.compile(r"((?:encoder|decoder)\.layers\.\d+)\.")


@dataclass(frozen=True)
class Sharding:
    """How weights, gradients and optimiser are sharded among processes.

    Attributes:
        shards: Processes, or groups of them, that share one copy of the weights.
        tensor: Processes that compute each block together.
    """

    shards: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, devices: DeviceConfig) -> Sharding:
        """The sharding that the options ask for; of `shard: auto`, that of `full`."""
        groups = max(devices.world_size, 1) // devices.tensor_parallel
        return cls(1 if devices.shard == "off" else devices.shard_size or groups, devices.tensor_parallel)

    @property
    def is_on(self) -> bool:
        """Whether a process holds less than the whole model."""
        return self.shards * self.tensor > 1

    def part(self, model: ModelConfig) -> ModelConfig:
        """The shape of what a process computes of each block."""
        if self.tensor == 1:
            return model
        sizes = {"heads": model.heads, "kv_heads": model.num_kv_heads, "ffn_size": model.ffn_size}
        parts = {name: size // self.tensor for name, size in sizes.items()}
        experts = {"expert_size": model.expert_size // self.tensor, "shared_size": model.moe.shared_size // self.tensor}
        whole = {"head_dim": model.size_per_head}
        return model.model_copy(update={**parts, **whole, "moe": model.moe.model_copy(update=experts)})


UNSHARDED = Sharding()


@dataclass(frozen=True)
class _Weight:
    """A parameter in the memory of a process.

    Attributes:
        size: Elements that the process computes with.
        own: Elements that it holds all the time.
        width: Bytes of each.
        kind: What becomes of it: "trained", "frozen", or "quantised".
        block: Path of its block; empty outside of blocks.
    """

    size: int
    own: int
    width: float
    kind: str
    block: str


@dataclass(frozen=True)
class Memory:
    """Bytes that a process needs for the model, by purpose.

    Attributes:
        held: During the whole run.
        forward: At the end of a forward pass.
        turn: In the first block of a backward pass, if weights are gathered for it; else empty.
        backward: At the end of a backward pass.
        update: While the largest weight is updated.
    """

    held: dict[str, int]
    forward: dict[str, int]
    backward: dict[str, int]
    update: dict[str, int]
    turn: dict[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, int]:
        """What is held, and what is added to it at the peak."""
        moments = (self.forward, self.turn, self.backward, self.update)
        sizes = [sum(parts.values()) for parts in moments]
        return {**self.held, **moments[sizes.index(max(sizes))]}

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.parts.values())


def estimate_memory(
    model: Transformer,
    activations: ActivationEstimate,
    *,
    quantised: Collection[str],
    optim: str,
    ema: bool = False,
    chunk_tokens: int = 0,
    device_type: str = "cpu",
    sharding: Sharding = UNSHARDED,
) -> Memory:
    """The memory of one process of a run: of the one that holds most, if weights are sharded.

    Args:
        model: The model on the meta device, with its adapters or twins, frozen as in training.
        activations: What autograd saves between forward and backward.
        quantised: Dotted paths of the layers that will be quantised.
        optim: Name of the optimiser.
        ema: A running average of the weights is maintained.
        chunk_tokens: Positions that go through the output layer together; 0 = the device's default.
        device_type: Type of the device that the model will run on.
        sharding: How the weights are sharded among processes.
    """
    precision, performance = activations.precision, activations.config.performance
    held, gradient = (2, 2) if performance.pure_bf16 else (TRAINED_BYTES, GRADIENT_BYTES)
    widths = {"trained": float(held), "frozen": float(precision.weights.itemsize), "quantised": 0.0}
    if quantised:
        widths["quantised"] = QUANT_TYPES.get(activations.layers.quant_type).weight_bytes
    weights = _weights(model, quantised, widths, sharding)
    own = {kind: sum(weight.own for weight in weights if weight.kind == kind) for kind in widths}
    trained, autocast = own["trained"], precision.autocast is not None
    optimizer = OPTIMIZERS[optim]
    moments = KAHAN_BYTES if performance.pure_bf16 else optimizer.state_bytes
    parts = {
        "weights": int(own["frozen"] * widths["frozen"] + trained * held),
        **({"averaged weights": trained * TRAINED_BYTES} if ema else {}),
        "quantised weights": int(own["quantised"] * widths["quantised"]),
        "optimiser": int(trained * moments),
    }
    largest = max((weight.own for weight in weights if weight.kind == "trained"), default=0)
    gradients = {"gradients": (largest if performance.optimizer_in_backward else trained) * gradient}
    earlier = gradients if max(activations.config.run.accum_count) > 1 else {}
    copies = KAHAN_COPIES if performance.pure_bf16 else optimizer.update_copies
    saved = activations.peak_bytes()
    output = _output_bytes(model, activations, gradient, chunk_tokens=chunk_tokens, device_type=device_type)
    blocks = activations.model.encoder_layers + activations.model.decoder_layers
    head = sum(parameter.numel() for parameter in output_parameters(model))
    cast = head if sharding.is_on else trained
    forward = {
        "activations": saved,
        **({"16-bit weights": 2 * cast} if autocast else {}),
        "output layer": output,
        **earlier,
    }
    backward, turn = {**gradients, "activations": saved // blocks}, {}
    if sharding.is_on:
        rest, block = _gathered(weights, autocast=autocast)
        rest_trained = sum(weight.size for weight in weights if weight.kind == "trained" and not weight.block)
        block_trained = _largest_block(weights, lambda weight: weight.size * (weight.kind == "trained"))
        forward["gathered weights"] = rest
        # The block that computes, and the one that is fetched for after it; gradients twice while they are summed.
        turn = {
            "activations": saved,
            "gathered weights": rest + 2 * block,
            "gathered gradients": head * gradient + block_trained * ((2 if autocast else gradient) + GRADIENT_BYTES),
            **earlier,
        }
        backward |= {"gathered weights": rest, "gathered gradients": rest_trained * (gradient + GRADIENT_BYTES)}
    return Memory(parts, forward, backward, update={**gradients, "update": copies * 4 * largest}, turn=turn)


def _weights(
    model: Transformer, quantised: Collection[str], widths: dict[str, float], sharding: Sharding
) -> list[_Weight]:
    """The parameters as the process with the largest parts has them."""
    owners = dict(model.named_modules())
    prefixes, found = tuple(f"{path}." for path in quantised), []
    for name, parameter in model.named_parameters():
        inside = _IN_BLOCK.match(name)
        shape = list(parameter.shape)
        dimension = sharded_dimension(owners[name.rpartition(".")[0]], name) if inside else None
        if dimension is not None:
            shape[dimension] //= sharding.tensor
        kind = "trained" if parameter.requires_grad else "frozen"
        if kind == "frozen" and name.replace(".base.", ".").startswith(prefixes) and parameter.ndim == 2:
            kind = "quantised"
        size = math.prod(shape)
        own = math.ceil(shape[0] / sharding.shards) * math.prod(shape[1:])
        found.append(_Weight(size, own, widths[kind], kind, inside[1] if inside else ""))
    return found


def _gathered(weights: Sequence[_Weight], *, autocast: bool) -> tuple[int, int]:
    """Bytes of the weights outside the blocks, and of the largest block, in the types in which they are gathered."""
    rest = sum(weight.size * weight.width for weight in weights if not weight.block)
    width = 2.0 if autocast else math.inf
    return int(rest), _largest_block(weights, lambda weight: weight.size * min(weight.width, width))


def _largest_block(weights: Sequence[_Weight], count: Callable[[_Weight], float]) -> int:
    blocks: Counter[str] = Counter()
    for weight in weights:
        if weight.block:
            blocks[weight.block] += math.ceil(count(weight))
    return max(blocks.values(), default=0)


def _output_bytes(
    model: Transformer, activations: ActivationEstimate, gradient: int, *, chunk_tokens: int, device_type: str
) -> int:
    """Bytes at the end of the loss: logits of a chunk, gradients of the output layer and of the last hidden states.

    The gradient of the logits replaces the logits.
    """
    shape, precision = activations.model, activations.precision
    vocab, positions = shape.vocab_size, activations.batch.tgt_positions
    head = sum(p.numel() for p in output_parameters(model)) * gradient
    chunk = chunk_tokens or default_chunk_tokens(device_type, vocab, trained=head > 0)
    itemsize = 2 if precision.autocast is not None else precision.weights.itemsize
    logits = min(chunk, positions) * vocab * itemsize
    return logits + positions * shape.hidden_size * itemsize + head * (2 if positions > chunk else 1)
