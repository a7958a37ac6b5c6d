"""What attention sinks cost on a CPU: against attention without them, and against all weights materialised.

python docs/benchmarks/attention_sinks.py

Processor time of one thread, the best of 5; 16 heads of 64 columns in 4 groups, float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from onmt_llm.nn.layers.attention import attend, attend_with_sinks
from onmt_llm.nn.masks import Mask

HEADS, KV_HEADS, SIZE, WINDOW = 16, 4, 64, 128
SCALE = SIZE**-0.5
Attend = Callable[[Tensor, Tensor, Tensor, Mask, Tensor], Tensor]


def without(q: Tensor, k: Tensor, v: Tensor, mask: Mask, sinks: Tensor) -> Tensor:
    return attend(q, k, v, mask, SCALE)


def with_sinks(q: Tensor, k: Tensor, v: Tensor, mask: Mask, sinks: Tensor) -> Tensor:
    return attend_with_sinks(q, k, v, mask, sinks, SCALE)


def materialised(q: Tensor, k: Tensor, v: Tensor, mask: Mask, sinks: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (k, v))
    scores = SCALE * q @ k.mT
    bias = mask.as_float(*scores.shape[2:])
    scores = scores if bias is None else scores + bias
    column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1] @ v


def step(function: Attend, length: int, *, window: bool) -> float:
    """Seconds of a forward and backward pass."""
    q = torch.randn(1, HEADS, length, SIZE, requires_grad=True)
    k, v = (torch.randn(1, KV_HEADS, length, SIZE, requires_grad=True) for _ in range(2))
    sinks, index = torch.randn(HEADS, requires_grad=True), torch.arange(length)[None]

    def run() -> None:
        mask = Mask(causal=True, first_BT=(index - WINDOW + 1).clamp(min=0) if window else None)
        function(q, k, v, mask, sinks).sum().backward()

    return best(run)


def decode(function: Attend, keys: int) -> float:
    """Seconds of 100 queries, one at a time."""
    q, sinks = torch.randn(1, HEADS, 1, SIZE), torch.randn(HEADS)
    k, v = torch.randn(2, 1, KV_HEADS, keys, SIZE)
    with torch.inference_mode():
        return best(lambda: [function(q, k, v, Mask(), sinks) for _ in range(100)])


def best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(5):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    functions = (without, with_sinks, materialised)
    for length in (512, 2048):
        for window in (False, True):
            plain, *others = (step(function, length, window=window) for function in functions)
            name = f"forward and backward, {length} tokens" + (f", window {WINDOW}" if window else "")
            print(f"{name}: {plain * 1000:.0f} ms; with sinks, materialised:", *(f"x {x / plain:.1f}" for x in others))
    for keys in (512, 8192):
        plain, *others = (decode(function, keys) for function in functions)
        print(
            f"one query, {keys} keys: {plain * 10:.3f} ms; with sinks, materialised:",
            *(f"x {x / plain:.1f}" for x in others),
        )


if __name__ == "__main__":
    main()
