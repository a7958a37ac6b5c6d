"""What a run will need, worked out without a weight in memory: the answer of `-dry_run`.

The figures follow from the shapes; what autograd keeps of the blocks is counted on a small copy, by `kept.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.quantized import num_parameters
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.dry_run.activations import Kept
from onmt_llm.training.dry_run.sampling import Sampled
from onmt_llm.training.losses.cross_entropy import output_parameters, positions_at_once

MIB = 1 << 20
# Bytes for each trained parameter; Adafactor's rows and columns are next to nothing beside its matrices, and so, about,
# are GaLore's projected moments and bases. Muon has one moment of most matrices.
OPTIMIZER_BYTES = {
    "sgd": 0.0,
    "adagrad": 4.0,
    "adadelta": 8.0,
    "lion": 4.0,
    "muon": 4.5,
    "galore": 1.5,
    "lion8bit": 1.03,
    "pagedlion8bit": 1.03,
    "adafactor": 0.05,
    "adam": 8.0,
    "adamw": 8.0,
    "fusedadam": 8.0,
    "pagedadamw32bit": 8.0,
    "adamw8bit": 2.06,
    "pagedadamw8bit": 2.06,
}
# Bytes for each quantised weight, scales included.
QUANT_BYTES = {"int8": 1.0, "bnb_8bit": 1.0, "bnb_NF4": 0.5625, "bnb_FP4": 0.5625}
GRADIENT_BYTES = 4
# Of bf16 weights: a moment and the rest of each weight in bf16, a moment in float32.
KAHAN_BYTES = 8.0
# Float32 copies of a weight that its update makes on the way; the fused forms of Adam, AdamW and Adagrad make none.
KAHAN_COPIES = 5
COPIES = {"adafactor": 1, "adamw8bit": 5, "pagedadamw8bit": 5, "lion8bit": 5, "pagedlion8bit": 5}
TRAINED_BYTES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes that a process needs for the model, by what they are for.

    Attributes:
        held: From the first update to the last.
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
        """What is held, and what there is beside it at the fullest moment."""
        moments = (self.forward, self.backward, self.update)
        sizes = [sum(parts.values()) for parts in moments]
        return {**self.held, **moments[sizes.index(max(sizes))]}

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """Size, memory and pace of a run.

    Attributes:
        model: Shape of the model.
        parameters: All parameters.
        trainable: Those that are trained.
        lora_layers: Layers with an adapter.
        new_blocks: Blocks that are new, as twins or further blocks.
        quant_layers: Quantised layers.
        memory: What a process needs for the model.
        program: Bytes of main memory beside that: Python, torch, tokenizers; 0 where the model is on a GPU.
        sampled: The largest of the first micro-batches, and where it was found.
        positions_per_step: Positions of one update, over all its micro-batches and processes, padding included.
        notes: Further lines: what is trained from where to where.
    """

    model: ModelConfig
    parameters: int
    trainable: int
    lora_layers: int
    new_blocks: int
    quant_layers: int
    memory: Memory
    program: int
    sampled: Sampled
    positions_per_step: int
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Bytes that a process needs at the fullest moment, where the model is."""
        return self.memory.peak + self.program

    def report(self) -> str:
        """The plan for people."""
        parts = {**({"this program": self.program} if self.program else {}), **self.memory.parts}
        kind = "decoder-only" if self.model.is_decoder_only else "encoder-decoder"
        share = 100 * self.trainable / max(self.parameters, 1)
        batch, estimated = self.sampled.batch, ""
        if not self.sampled.is_whole:
            estimated = f" (estimated from the first {self.sampled.examples:,} examples)"
        lines = [
            f"Model: {kind}, {self.model.encoder_layers}+{self.model.decoder_layers} layers, "
            f"width {self.model.hidden_size}, vocabulary {self.model.vocab_size:,}",
            f"Parameters: {self.parameters:,}; trainable {self.trainable:,} ({share:.2f}%)",
            f"Layers with LoRA: {self.lora_layers}; quantised: {self.quant_layers}; new blocks: {self.new_blocks}",
            "Memory per process at the fullest moment of an update, estimated:",
            *(f"  {part:<18}{size / MIB:>10,.1f} MiB" for part, size in parts.items()),
            f"  {'total':<18}{self.peak / MIB:>10,.1f} MiB",
            f"Micro-batch: up to {batch.examples} examples, {batch.positions:,} tokens with padding{estimated}",
            f"Tokens per step: {self.positions_per_step:,} with padding",
            *self.notes,
        ]
        return "\n".join(lines)


def estimate_memory(
    model: Transformer,
    kept: Kept,
    *,
    quantised: set[str],
    optim: str,
    average: bool = False,
    chunk_tokens: int = 0,
    device_type: str = "cpu",
) -> Memory:
    """Memory of a run, in one process.

    Args:
        model: On the meta device, with its adapters or twins, frozen as it will be trained.
        kept: What is kept between forward and backward.
        quantised: Dotted paths of the layers that will be quantised.
        optim: Name of the optimiser.
        average: A running average of the weights is kept.
        chunk_tokens: Positions that go through the output layer together; 0 = as the device likes it.
        device_type: Where the model will run.
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
    precision, performance = kept.precision, kept.config.performance
    held, gradient = (2, 2) if performance.pure_bf16 else (TRAINED_BYTES, GRADIENT_BYTES)
    autocast = precision.autocast is not None
    moments = KAHAN_BYTES if performance.pure_bf16 else OPTIMIZER_BYTES[optim]
    parts = {
        "weights": frozen * precision.weights.itemsize + trained * held,
        **({"averaged weights": trained * TRAINED_BYTES} if average else {}),
        "quantised weights": int(packed * QUANT_BYTES.get(kept.layers.quant_type, 0.0)),
        "optimiser": int(trained * moments),
    }
    largest = max((p.numel() for p in model.parameters() if p.requires_grad), default=0)
    gradients = {"gradients": (largest if performance.optimizer_in_backward else trained) * gradient}
    copies = KAHAN_COPIES if performance.pure_bf16 else COPIES.get(optim, 0)
    activations = kept.at_most()
    forward = {
        "activations": activations,
        **({"16-bit weights": 2 * trained} if autocast else {}),
        "output layer": _output_bytes(model, kept, gradient, chunk_tokens=chunk_tokens, device_type=device_type),
    }
    blocks = kept.model.encoder_layers + kept.model.decoder_layers
    return Memory(
        parts,
        forward,
        backward={**gradients, "activations": activations // blocks},
        update={**gradients, "update": copies * 4 * largest},
    )


def _output_bytes(model: Transformer, kept: Kept, gradient: int, *, chunk_tokens: int, device_type: str) -> int:
    """Bytes at the end of the loss: logits of a chunk, and gradients of the output layer and of the last hidden states.

    Logits become their own gradient.
    """
    vocab, positions = kept.model.vocab_size, kept.batch.tgt_positions
    head = sum(p.numel() for p in output_parameters(model)) * gradient
    chunk = chunk_tokens or positions_at_once(device_type, vocab, trained=head > 0)
    itemsize = 2 if kept.precision.autocast is not None else kept.precision.weights.itemsize
    logits = min(chunk, positions) * vocab * itemsize
    return logits + positions * kept.model.hidden_size * itemsize + head * (2 if positions > chunk else 1)


def count(model: nn.Module) -> tuple[int, int]:
    """Parameters in all, those of quantised layers included, and those that are trained."""
    return num_parameters(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
