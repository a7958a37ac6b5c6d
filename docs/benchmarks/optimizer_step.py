"""Time of an optimiser update: torch's fused, `foreach` and plain-loop implementations.

`python docs/benchmarks/optimizer_step.py` prints the median of `STEPS` updates for 240 small matrices, like adapters,
and for 30 matrices of 1.5 million weights, and the difference of the weights from the fused implementation.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

SHAPES = {"adapters": [(16, 2048), (2048, 16)] * 120, "whole model": [(1500, 1000)] * 30}
KINDS = {"AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam, "Adagrad": torch.optim.Adagrad}
WAYS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
STEPS = 7


def updates(kind: str, shapes: list[tuple[int, int]], way: dict[str, bool]) -> tuple[float, torch.Tensor]:
    """Median seconds of an update, and the weights after all of them."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(0.02 * torch.randn(shape)) for shape in shapes]
    optimizer = KINDS[kind](parameters, lr=1e-3, weight_decay=0.01, **way)
    times = []
    for _ in range(STEPS + 1):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
    # the first update allocates the moments
    return statistics.median(times[1:]), torch.cat([p.detach().flatten() for p in parameters])


def main() -> None:
    print("| optimiser | weights | fused ms | foreach ms | loop ms | largest difference |\n|---|---|--:|--:|--:|--:|")
    for kind in KINDS:
        for name, shapes in SHAPES.items():
            found = [updates(kind, shapes, way) for way in WAYS.values()]
            apart = max(float((weights - found[0][1]).abs().max()) for _, weights in found)
            figures = " | ".join(f"{1000 * seconds:.0f}" for seconds, _ in found)
            print(f"| {kind} | {name} | {figures} | {apart:.0e} |", flush=True)


if __name__ == "__main__":
    main()
