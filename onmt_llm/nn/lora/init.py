"""PiSSA and LoftQ: adapters that start with a part of the weight, which is taken out before quantisation.

Both write W = base + scale * B0 A0, so that step 0 computes what W does:

- PiSSA (Meng et al. 2024): B0 A0 are the largest singular directions of W, which are trained; the base is the rest.
- LoftQ (Li et al. 2024): B0 A0 are the largest singular directions of the quantisation error; the base is Q(W) with
  one iteration, and with several Q(W - scale * B A), where B A are those of the previous iteration.

An adapter checkpoint stores (B0, A0) as `lora_start_*`, and the product that was taken out of W before quantisation as
`lora_shift_*` where it is another. These and W rebuild the layer; W + scale * (B A - B0 A0) is the merged weight,
however the base was quantised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from onmt_llm.nn.lora.dora import DoRALinear
from onmt_llm.nn.lora.layers import LoRALinear
from onmt_llm.nn.lora.variant import LoraInit
from onmt_llm.nn.quantized import QUANT_TYPES, linear_weight

Product = tuple[Tensor, Tensor]
"""A (rank, in) and B (out, rank)."""


@torch.no_grad()
def initial_adapter(
    weight: Tensor, *, init: LoraInit, rank: int, scale: float, iterations: int | None, quant_type: str
) -> dict[str, Tensor]:
    """Initial tensors of a layer's adapter: `lora_start_a`, `lora_start_b`, and with several iterations of LoftQ
    `lora_shift_a`, `lora_shift_b`. Empty for LoftQ on a layer of full precision, which has no error to make up for.

    Args:
        weight: (out, in) weight of the layer, not quantised yet.
        init: PiSSA or LoftQ.
        rank: Inner size of the adapter.
        scale: Factor of the adapter.
        iterations: PiSSA: power iterations of a randomised SVD, None = exact SVD. LoftQ: alternations, None = 1.
        quant_type: Number format that the layer will have; empty = it is not quantised.
    """
    wanted = weight.float()
    if init == "pissa":
        return _named("start", truncated_svd(wanted, rank, scale, iterations))
    if not quant_type:
        return {}
    shift = wanted.new_zeros(rank, wanted.shape[1]), wanted.new_zeros(wanted.shape[0], rank)
    start = shift
    for _ in range(iterations or 1):
        shift = start
        rest = (wanted - scale * (shift[1] @ shift[0])).to(weight.dtype)
        start = truncated_svd(wanted - _quantised(rest, quant_type), rank, scale, None)
    return {**_named("start", start), **(_named("shift", shift) if (iterations or 1) > 1 else {})}


def truncated_svd(matrix: Tensor, rank: int, scale: float, iterations: int | None) -> Product:
    """The best A and B for `matrix` = scale * B A; each gets the root of the singular values."""
    if iterations is None:
        u, s, v_t = torch.linalg.svd(matrix, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(matrix, q=min(rank + 8, *matrix.shape), niter=iterations)
        v_t = v.t()
    root = (s[:rank] / scale).sqrt()
    a, b = matrix.new_zeros(rank, matrix.shape[1]), matrix.new_zeros(matrix.shape[0], rank)
    a[: len(root)], b[:, : len(root)] = root[:, None] * v_t[:rank], u[:, :rank] * root
    return a, b


def removed_product(tensors: Mapping[str, Tensor], *, init: LoraInit, quantised: bool) -> Product | None:
    """The product that is taken out of the weight before quantisation; None = nothing is.

    Args:
        tensors: The `lora_start_*` and `lora_shift_*` that the layer has.
        init: PiSSA or LoftQ.
        quantised: The layer is quantised. One that is not has no error that LoftQ could make up for, so its initial A
            and B are taken out.
    """
    kind = "shift" if init == "loftq" and quantised else "start"
    a, b = tensors.get(f"lora_{kind}_a"), tensors.get(f"lora_{kind}_b")
    return None if a is None or b is None else (a, b)


@torch.no_grad()
def subtract_product(linear: nn.Module, product: Product, scale: float) -> None:
    """Subtract scale * B A from the layer's weight, computed in float32, in place."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    a, b = (tensor.to(weight.device).float() for tensor in product)
    weight.copy_(torch.addmm(weight.float(), b, a, alpha=-scale))


def add_initial_buffers(module: LoRALinear, names: Sequence[str]) -> None:
    """Give the layer buffers, all zeros, for these `INITIAL_TENSORS`."""
    for name in names:
        like = module.lora_a if name.endswith("a") else module.lora_b
        module.register_buffer(name, torch.zeros_like(like, requires_grad=False))


@torch.no_grad()
def set_initial(module: LoRALinear, tensors: Mapping[str, Tensor]) -> None:
    """Set A and B, and the record of their initial values, to the result of `initial_adapter`."""
    for name, tensor in tensors.items():
        module.get_buffer(name).copy_(tensor)
    if tensors:
        module.lora_a.copy_(tensors["lora_start_a"])
        module.lora_b.copy_(tensors["lora_start_b"])
        if isinstance(module, DoRALinear):
            module.reset_magnitude()


def _named(kind: str, product: Product) -> dict[str, Tensor]:
    return {f"lora_{kind}_a": product[0], f"lora_{kind}_b": product[1]}


def _quantised(weight: Tensor, quant_type: str) -> Tensor:
    """The weight after quantisation and dequantisation, in float32."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear_weight(QUANT_TYPES.get(quant_type).build(linear)).float()
