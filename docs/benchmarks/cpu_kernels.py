"""Time our CPU kernels and torch's, forward and backward, at the sizes of a model.

    python docs/benchmarks/cpu_kernels.py -rounds 9

The default sizes are SmolLM2-135M's. Each pair is timed alternately in one process; the figures are medians in
milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from onmt_llm.nn.cpu.fused import rms_norm, silu_mul
from onmt_llm.nn.cpu.int8_matmul import int8_linear
from onmt_llm.nn.layers.attention import attend
from onmt_llm.nn.masks import Mask
from onmt_llm.nn.quantized import quantize_rows


@dataclass(frozen=True)
class Pair:
    """One comparison: the same result computed by torch and by us, from inputs that require a gradient."""

    name: str
    inputs: list[Tensor]
    theirs: Callable[[], Tensor]
    ours: Callable[[], Tensor]


def pairs(arguments: argparse.Namespace) -> list[Pair]:
    """All rows of the table."""
    width, inner, size = arguments.width, arguments.inner, arguments.head_size
    key_heads, dtype = arguments.key_heads, getattr(torch, arguments.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    def attention(rows: int, length: int, documents: int = 1) -> Pair:
        q, k, v = (
            draw(rows, length, heads, size).detach().transpose(1, 2).requires_grad_()
            for heads in (arguments.heads, key_heads, key_heads)
        )
        first_BT = None
        if documents > 1:
            step = length // documents
            first_BT = (torch.arange(length) // step * step).expand(rows, -1)
        mask = Mask(causal=True, first_BT=first_BT)
        bias = mask.materialized
        return Pair(
            f"attention, {rows} x {length}" + (f" in {documents} documents" if documents > 1 else ""),
            [q, k, v],
            lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=True),
            lambda: attend(q, k, v, mask),
        )

    def linear(rows: int, inputs: int, outputs: int) -> Pair:
        x, weight = draw(rows, inputs), draw(outputs, inputs).detach()
        levels, scale = quantize_rows(weight)
        name = f"linear {inputs} -> {outputs} in int8, {rows} rows"
        return Pair(name, [x], lambda: F.linear(x, weight), lambda: int8_linear(x, levels, scale, None))

    def norm(rows: int) -> Pair:
        x, weight = draw(rows, width), torch.ones(width, dtype=dtype)
        theirs = lambda: F.rms_norm(x, (width,), weight, 1e-5)  # noqa: E731
        return Pair(f"RMSNorm, {rows} rows", [x], theirs, lambda: rms_norm(x, weight, 1e-5))

    def product(rows: int) -> Pair:
        gate, up = draw(rows, inner), draw(rows, inner)
        theirs = lambda: F.silu(gate) * up  # noqa: E731
        return Pair(f"SwiGLU, {rows} rows", [gate, up], theirs, lambda: silu_mul(gate, up))

    return [
        *(attention(rows, length) for rows, length in ((32, 64), (9, 200), (4, 512), (2, 1024))),
        attention(1, 2048, documents=8),
        *(linear(2048, inputs, outputs) for inputs, outputs in ((width, width), (width, inner), (inner, width))),
        norm(2048),
        product(2048),
    ]


def measure(pair: Pair, rounds: int) -> list[float]:
    """Milliseconds: forward of theirs and ours, backward of theirs and ours."""
    times: list[list[float]] = [[] for _ in range(4)]
    gradient = torch.randn_like(pair.ours())
    for turn in range(rounds + 1):
        for place, function in enumerate((pair.theirs, pair.ours)):
            start = time.perf_counter()
            result = function()
            middle = time.perf_counter()
            torch.autograd.grad(result, pair.inputs, gradient)
            ended = time.perf_counter()
            if turn:  # the first one warms up
                times[place].append(1e3 * (middle - start))
                times[2 + place].append(1e3 * (ended - middle))
    return [statistics.median(each) for each in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-width", type=int, default=576)
    parser.add_argument("-inner", type=int, default=1536)
    parser.add_argument("-heads", type=int, default=9)
    parser.add_argument("-key_heads", type=int, default=3)
    parser.add_argument("-head_size", type=int, default=64)
    parser.add_argument("-dtype", default="bfloat16")
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print("| | forward, torch | ours | backward, torch | ours | both, ratio |")
    print("|---|--:|--:|--:|--:|--:|")
    for pair in pairs(arguments):
        forward, our_forward, backward, our_backward = measure(pair, arguments.rounds)
        ratio = (forward + backward) / (our_forward + our_backward)
        print(
            f"| {pair.name} | {forward:.2f} | {our_forward:.2f} | {backward:.2f} | {our_backward:.2f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
