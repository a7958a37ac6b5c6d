"""Adapters that begin with a share of the weight, before it is quantised: PiSSA and LoftQ.

Both write W = base + scale * B0 A0, so that step 0 computes what W does:

- PiSSA (Meng et al. 2024): B0 A0 are the largest singular directions of W, which are trained; the base is the rest.
- LoftQ (Li et al. 2024): B0 A0 are the largest singular directions of what quantisation loses; the base is Q(W) with
  one alternation, and Q(W - scale * B A) with those of the alternation before, with several.

An adapter checkpoint remembers (B0, A0) as `lora_start_*`, and what was taken out of W before it was quantised as
`lora_shift_*` where that is another product. From these and the base's own W, the layer is built again as it was; and
W + scale * (B A - B0 A0) is the merged weight, whatever the base was quantised to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from onmt_llm.nn.lora.layers import LoraInit, LoRALinear
from onmt_llm.nn.quantized import QUANT_TYPES, linear_weight

Product = tuple[Tensor, Tensor]
"""A (rank, in) and B (out, rank)."""


@torch.no_grad()
def first_adapter(
    weight: Tensor, *, init: LoraInit, rank: int, scale: float, iterations: int | None, quant_type: str
) -> dict[str, Tensor]:
    """What the adapter of a layer begins with: `lora_start_a`, `lora_start_b`, and with several alternations of LoftQ
    `lora_shift_a`, `lora_shift_b`; nothing where there is nothing to begin with (LoftQ on a layer of full precision).

    Args:
        weight: (out, in) weight of the layer, not quantised yet.
        init: PiSSA or LoftQ.
        rank: Inner size of the adapter.
        scale: Factor of the adapter.
        iterations: PiSSA: power iterations of a randomised SVD, None = the exact one. LoftQ: alternations, None = 1.
        quant_type: Number format that the layer will have; empty = as it is.
    """
    wanted = weight.float()
    if init == "pissa":
        return _named("start", leading(wanted, rank, scale, iterations))
    if not quant_type:
        return {}
    shift = wanted.new_zeros(rank, wanted.shape[1]), wanted.new_zeros(wanted.shape[0], rank)
    start = shift
    for _ in range(iterations or 1):
        shift = start
        rest = (wanted - scale * (shift[1] @ shift[0])).to(weight.dtype)
        start = leading(wanted - _quantised(rest, quant_type), rank, scale, None)
    return {**_named("start", start), **(_named("shift", shift) if (iterations or 1) > 1 else {})}


def leading(matrix: Tensor, rank: int, scale: float, iterations: int | None) -> Product:
    """The best A and B such that `matrix` is about scale * B A, its singular values shared by both."""
    if iterations is None:
        u, s, v_t = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(matrix, q=min(rank + 8, *matrix.shape), niter=iterations)
        v_t = v.t()
    root = (s[:rank] / scale).sqrt()
    a, b = matrix.new_zeros(rank, matrix.shape[1]), matrix.new_zeros(matrix.shape[0], rank)
    a[: len(root)], b[:, : len(root)] = root[:, None] * v_t[:rank], u[:, :rank] * root
    return a, b


def share_of_adapter(tensors: Mapping[str, Tensor], *, init: LoraInit, quantised: bool) -> Product | None:
    """The product that is taken out of the weight before it is quantised, if it is; None = nothing.

    Args:
        tensors: `lora_start_*` and `lora_shift_*` of the layer, as far as they are there.
        init: PiSSA or LoftQ.
        quantised: The layer is quantised. One that is not has lost nothing that LoftQ could give back, so that the
            adapter's share is what it began with.
    """
    kind = "shift" if init == "loftq" and quantised else "start"
    a, b = tensors.get(f"lora_{kind}_a"), tensors.get(f"lora_{kind}_b")
    return None if a is None or b is None else (a, b)


@torch.no_grad()
def take_out(linear: nn.Module, product: Product, scale: float) -> None:
    """Subtract scale * B A from the layer's weight, computed in float32, in place."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    a, b = (tensor.to(weight.device).float() for tensor in product)
    weight.copy_(torch.addmm(weight.float(), b, a, alpha=-scale))


@torch.no_grad()
def begin(module: LoRALinear, tensors: Mapping[str, Tensor]) -> None:
    """Put what `first_adapter` found into the layer, as A and B and as what they began with."""
    for name, tensor in tensors.items():
        module.get_buffer(name).copy_(tensor)
    if tensors:
        module.lora_a.copy_(tensors["lora_start_a"])
        module.lora_b.copy_(tensors["lora_start_b"])
        module.reset_magnitude()


def _named(kind: str, product: Product) -> dict[str, Tensor]:
    return {f"lora_{kind}_a": product[0], f"lora_{kind}_b": product[1]}


def _quantised(weight: Tensor, quant_type: str) -> Tensor:
    """What is left of the weight when it is quantised, in float32."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    build: Callable[[nn.Linear], nn.Module] = QUANT_TYPES.get(quant_type)
    return linear_weight(build(linear)).float()
