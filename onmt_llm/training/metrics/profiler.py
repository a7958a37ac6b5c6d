"""Profile some updates with torch's profiler: a trace for Chrome or Perfetto, a table, and counted operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from onmt_llm.atomic import atomic_file, write_text
from onmt_llm.log import logger

_ROWS = 60


class FlopCounter(TorchDispatchMode):
    """A context that counts floating-point operations by kind, with torch's own formulas.

    `FlopCounterMode` counts them by module, but its hooks do not support the loss's gradient inside the forward pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops[str(func._overloadpacket)] += flop_registry[func._overloadpacket](
                *args, **kwargs, out_val=result
            )
        return result

    def table(self, *, updates: int) -> str:
        """A line for each kind, the largest first: GFLOP per update, and the share."""
        total, updates = max(self.flops.total(), 1), max(updates, 1)
        rows = [*self.flops.most_common(), ("in all", self.flops.total())]
        return "".join(f"{name:<60}{n / updates / 1e9:>14.4f} GFLOP{100 * n / total:>8.2f}%\n" for name, n in rows)


class Profiler:
    """Profiles a range of updates. A run that starts or ends inside the range gives a shorter profile.

    Args:
        steps: First and last update; empty = nothing is profiled.
        folder: Folder for the files, which are named by rank.
        rank: Rank of this process.
        flops: Also count floating-point operations, by kind.
    """

    def __init__(
        self, steps: Sequence[int] = (), folder: Path = Path("profile"), *, rank: int = 0, flops: bool = False
    ) -> None:
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._folder = folder
        self._rank = rank
        self._flops = FlopCounter() if flops else None
        self._profile: Any = None
        self._open = ExitStack()
        self._done: list[int] = []

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def begin(self, step: int) -> None:
        """Call before update `step`."""
        if step not in self._steps or self._profile is not None:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = self._open.enter_context(profile(activities=activities))
        if self._flops is not None:
            self._open.enter_context(self._flops)

    def end(self, step: int) -> None:
        """Call after update `step`."""
        if self._profile is None:
            return
        self._done.append(step)
        if step == self._steps[-1]:
            self._finish()

    def _finish(self) -> None:
        """Write the profile so far."""
        if self._profile is None:
            return
        self._open.close()
        trace, table = (self._folder / f"rank{self._rank}_{name}" for name in ("trace.json", "table.txt"))
        with atomic_file(trace) as place:
            self._profile.export_chrome_trace(str(place))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        write_text(table, self._profile.key_averages().table(sort_by=by, row_limit=_ROWS))
        if self._flops is not None:
            counted = self._flops.table(updates=len(self._done))
            write_text(self._folder / f"rank{self._rank}_flops.txt", counted)
        self._profile = None
        if self._done:
            logger.info("Profiled updates %d to %d: %s", self._done[0], self._done[-1], self._folder)
