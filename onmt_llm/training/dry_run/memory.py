"""Estimate the memory of a training run from the shapes of its tensors, without allocating a weight."""

from __future__ import annotations

from dataclasses import dataclass

from onmt_llm.nn.quantized import QUANT_TYPES
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.dry_run.activations import ActivationEstimate
from onmt_llm.training.losses.output_layer import default_chunk_tokens, output_parameters
from onmt_llm.training.optim.registry import OPTIMIZERS

MIB = 1 << 20
GRADIENT_BYTES = 4
# `KahanAdamW`: one moment and the rounding error of each weight in bf16, the other moment in float32.
KAHAN_BYTES = 8.0
KAHAN_COPIES = 5
TRAINED_BYTES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes that a process needs for the model, by purpose.

    Attributes:
        held: During the whole run.
        forward: At the end of a forward pass.
        backward: At the end of a backward pass.
        update: While the largest weight is updated.
    """

    held: dict[str, int]
    forward: dict[str, int]
    backward: dict[str, int]
    update: dict[str, int]

    @property
    def parts(self) -> dict[str, int]:
        """What is held, and what is added to it at the peak."""
        moments = (self.forward, self.backward, self.update)
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
    quantised: set[str],
    optim: str,
    ema: bool = False,
    chunk_tokens: int = 0,
    device_type: str = "cpu",
) -> Memory:
    """The memory of one process of a run.

    Args:
        model: The model on the meta device, with its adapters or twins, frozen as in training.
        activations: What autograd saves between forward and backward.
        quantised: Dotted paths of the layers that will be quantised.
        optim: Name of the optimiser.
        ema: A running average of the weights is maintained.
        chunk_tokens: Positions that go through the output layer together; 0 = the device's default.
        device_type: Type of the device that the model will run on.
    """
    frozen = trained = packed = 0
    prefixes = tuple(f"{path}." for path in quantised)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained += parameter.numel()
        elif prefixes and name.replace(".base.", ".").startswith(prefixes) and parameter.ndim == 2:
            packed += parameter.numel()
        else:
            frozen += parameter.numel()
    precision, performance = activations.precision, activations.config.performance
    held, gradient = (2, 2) if performance.pure_bf16 else (TRAINED_BYTES, GRADIENT_BYTES)
    autocast = precision.autocast is not None
    optimizer = OPTIMIZERS[optim]
    moments = KAHAN_BYTES if performance.pure_bf16 else optimizer.state_bytes
    parts = {
        "weights": frozen * precision.weights.itemsize + trained * held,
        **({"averaged weights": trained * TRAINED_BYTES} if ema else {}),
        "quantised weights": int(packed * QUANT_TYPES.get(activations.layers.quant_type).weight_bytes) if packed else 0,
        "optimiser": int(trained * moments),
    }
    largest = max((p.numel() for p in model.parameters() if p.requires_grad), default=0)
    gradients = {"gradients": (largest if performance.optimizer_in_backward else trained) * gradient}
    copies = KAHAN_COPIES if performance.pure_bf16 else optimizer.update_copies
    saved = activations.peak_bytes()
    forward = {
        "activations": saved,
        **({"16-bit weights": 2 * trained} if autocast else {}),
        "output layer": _output_bytes(model, activations, gradient, chunk_tokens=chunk_tokens, device_type=device_type),
    }
    blocks = activations.model.encoder_layers + activations.model.decoder_layers
    return Memory(
        parts,
        forward,
        backward={**gradients, "activations": saved // blocks},
        update={**gradients, "update": copies * 4 * largest},
    )


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
