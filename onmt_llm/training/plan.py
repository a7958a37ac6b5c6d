"""What a run will need, worked out without a weight in memory: the answer of `-dry_run`.

The figures follow from the shapes; what autograd keeps of a block, per position, is counted in `_block_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.quantized import num_parameters
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.loss import output_parameters, positions_at_once
from onmt_llm.training.precision import emulates_bf16
from onmt_llm.training.utilisation import BlockUse, block_uses

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
TRAINED_BYTES = 4


@dataclass(frozen=True)
class Shape:
    """A micro-batch for the estimates.

    Attributes:
        examples: Rows.
        tgt_positions: Positions of the decoder, padding included.
        src_positions: Positions of the encoder, padding included.
    """

    examples: int
    tgt_positions: int
    src_positions: int = 0

    @property
    def positions(self) -> int:
        """Positions of source and target together."""
        return self.tgt_positions + self.src_positions


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
        memory: Bytes of each part, per process.
        batch: The largest of the first micro-batches.
        positions_per_step: Positions of one update, over all its micro-batches and processes, padding included.
        notes: Further lines: what is trained from where to where.
    """

    model: ModelConfig
    parameters: int
    trainable: int
    lora_layers: int
    new_blocks: int
    quant_layers: int
    memory: dict[str, int]
    batch: Shape
    positions_per_step: int
    notes: list[str] = field(default_factory=list)

    @property
    def total_memory(self) -> int:
        """Bytes of all parts together, per process."""
        return sum(self.memory.values())

    def report(self) -> str:
        """The plan for people."""
        kind = "decoder-only" if self.model.is_decoder_only else "encoder-decoder"
        share = 100 * self.trainable / max(self.parameters, 1)
        lines = [
            f"Model: {kind}, {self.model.encoder_layers}+{self.model.decoder_layers} layers, "
            f"width {self.model.hidden_size}, vocabulary {self.model.vocab_size:,}",
            f"Parameters: {self.parameters:,}; trainable {self.trainable:,} ({share:.2f}%)",
            f"Layers with LoRA: {self.lora_layers}; quantised: {self.quant_layers}; new blocks: {self.new_blocks}",
            "Memory per process, estimated:",
            *(f"  {part:<18}{size / MIB:>10,.1f} MiB" for part, size in self.memory.items()),
            f"  {'total':<18}{self.total_memory / MIB:>10,.1f} MiB",
            f"Micro-batch: up to {self.batch.examples} examples, {self.batch.positions:,} tokens with padding",
            f"Tokens per step: {self.positions_per_step:,} with padding",
            *self.notes,
        ]
        return "\n".join(lines)


def estimate_memory(
    model: Transformer,
    *,
    quantised: set[str],
    quant_type: str,
    weight_bytes: int,
    optim: str,
    batch: Shape,
    autocast: bool,
    dropout: bool,
    checkpoint_blocks: bool,
    average: bool = False,
    pure_bf16: bool = False,
    chunk_tokens: int = 0,
    device_type: str = "cpu",
) -> dict[str, int]:
    """Bytes of each part of a run's memory, in one process.

    Args:
        model: On the meta device, with its adapters or twins, frozen as it will be trained.
        quantised: Dotted paths of the layers that will be quantised.
        quant_type: Their number format.
        weight_bytes: Bytes of a frozen weight that is not quantised.
        optim: Name of the optimiser.
        batch: The micro-batch.
        autocast: Float32 weights compute in 16 bits, of which autograd keeps a copy.
        dropout: Residual branches have dropout.
        checkpoint_blocks: Blocks are recomputed in the backward pass.
        average: A running average of the weights is kept.
        pure_bf16: What is trained is bf16, gradients included.
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
    held, gradient = (2, 2) if pure_bf16 else (TRAINED_BYTES + (2 if autocast else 0), GRADIENT_BYTES)
    compute_bytes = 2 if autocast else weight_bytes
    vocab, width = model.config.vocab_size, model.config.hidden_size
    return {
        "weights": frozen * weight_bytes + trained * held,
        **({"averaged weights": trained * TRAINED_BYTES} if average else {}),
        "quantised weights": int(packed * QUANT_BYTES.get(quant_type, 0.0)),
        "gradients": trained * gradient,
        "optimiser": int(trained * OPTIMIZER_BYTES[optim]),
        "activations": activation_bytes(
            model.config,
            batch,
            weight_bytes=weight_bytes,
            autocast=autocast,
            uses=block_uses(model),
            dropout=dropout,
            checkpoint_blocks=checkpoint_blocks,
        ),
        "output layer": min(
            chunk_tokens or positions_at_once(device_type, vocab, trained=bool(output_parameters(model))),
            batch.tgt_positions,
        )
        * vocab
        * (4 + 2 * compute_bytes)
        + batch.tgt_positions * width * 2 * compute_bytes,
    }


def activation_bytes(
    config: ModelConfig,
    batch: Shape,
    *,
    weight_bytes: int,
    autocast: bool,
    uses: tuple[Sequence[BlockUse], Sequence[BlockUse]],
    dropout: bool = False,
    checkpoint_blocks: bool = False,
) -> int:
    """Bytes that autograd keeps between forward and backward of one micro-batch.

    Args:
        config: Shape of the model.
        batch: The micro-batch.
        weight_bytes: Bytes of an activation between the layers.
        autocast: Linear layers compute in 16 bits.
        uses: Of the blocks of encoder and decoder.
        dropout: Residual branches have dropout.
        checkpoint_blocks: Only the input of each block is kept, and one block at a time is recomputed.
    """
    sizes = {
        full: _block_bytes(config, weight_bytes=weight_bytes, autocast=autocast, full=full, dropout=dropout)
        for full in (False, True)
    }
    cross = _cross_bytes(config, weight_bytes) if config.encoder_layers else 0
    encoder, decoder = ([sizes[use.trained] for use in stack if use.backward] for stack in uses)
    kept = [(batch.src_positions, size) for size in encoder] + [(batch.tgt_positions, size + cross) for size in decoder]
    if checkpoint_blocks:
        inputs = sum(positions * config.hidden_size * weight_bytes for positions, _ in kept)
        return inputs + max((positions * size for positions, size in kept), default=0)
    return sum(positions * size for positions, size in kept)


def _block_bytes(config: ModelConfig, *, weight_bytes: int, autocast: bool, full: bool, dropout: bool) -> int:
    """Bytes that one block keeps for each position; checked against autograd's saved tensors.

    A norm keeps its input (RMSNorm in float32, and the normalised one if its weight is trained); attention q, k, v and
    its output; a gated feed-forward layer gate, up and the activation, an ungated one the activation. Linear layers
    keep their input if they, or an adapter on them, are trained, in 16 bits under autocast. Dropout keeps its masks.
    """
    width, inner = config.hidden_size, config.ffn_size
    heads, keys = config.heads * config.size_per_head, config.num_kv_heads * config.size_per_head
    compute = 2 if autocast else weight_bytes
    rms = config.norm == "rmsnorm"
    attend = 4 if compute == 2 and emulates_bf16() else compute
    size = 2 * width * (4 if rms else weight_bytes) + width * compute
    size += (2 * heads + 2 * keys) * attend + (heads * compute if attend != compute else 0)
    size += (3 if config.ffn_gated else 1) * inner * compute
    if full:
        size += width * compute + (inner * compute if config.ffn_gated else 0) + (3 * width * 4 if rms else 0)
    if dropout:
        size += (2 * width + 2 * inner) * compute
    return size


def _cross_bytes(config: ModelConfig, weight_bytes: int) -> int:
    """Bytes that a cross attention adds for each target position (and, about, source position)."""
    heads, keys = config.heads * config.size_per_head, config.num_kv_heads * config.size_per_head
    return (2 * config.hidden_size + 2 * heads + 2 * keys) * weight_bytes


def count(model: nn.Module) -> tuple[int, int]:
    """Parameters in all, those of quantised layers included, and those that are trained."""
    return num_parameters(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
