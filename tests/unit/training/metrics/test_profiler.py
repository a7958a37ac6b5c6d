"""The profiler: which updates it covers, its files, and its count of operations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from onmt_llm.training.metrics.profiler import FlopCounter, Profiler


def profiled(folder: Path, steps: list[int], updates: range, **options: bool) -> list[str]:
    with Profiler(steps, folder, **options) as profiler:
        for step in updates:
            profiler.begin(step)
            torch.ones(8, 16) @ torch.ones(16, 4)
            profiler.end(step)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_products_are_counted_by_kind() -> None:
    with FlopCounter() as counter:
        torch.ones(8, 16) @ torch.ones(16, 4)
        torch.ones(8) + 1
    assert dict(counter.flops) == {"aten.mm": 2 * 8 * 16 * 4}
    kind, total = counter.table(updates=2).splitlines()
    assert kind.split() == ["aten.mm", "0.0000", "GFLOP", "100.00%"] and total.startswith("in all")


def test_nothing_counted_is_a_table_too() -> None:
    assert FlopCounter().table(updates=0).split() == ["in", "all", "0.0000", "GFLOP", "0.00%"]


def test_a_range_of_updates_is_written_by_rank(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="onmt_llm"):
        names = profiled(tmp_path / "p", [2, 3], range(1, 6), flops=True)
    assert names == ["rank0_flops.txt", "rank0_table.txt", "rank0_trace.json"]
    assert "Profiled updates 2 to 3" in caplog.text
    trace = json.loads((tmp_path / "p/rank0_trace.json").read_text())
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) >= 2
    assert "aten.mm" in (tmp_path / "p/rank0_flops.txt").read_text()


def test_a_run_that_ends_inside_gives_a_shorter_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="onmt_llm"):
        assert profiled(tmp_path / "p", [2, 9], range(1, 4)) == ["rank0_table.txt", "rank0_trace.json"]
    assert "Profiled updates 2 to 3" in caplog.text


def test_without_a_range_nothing_is_written(tmp_path: Path) -> None:
    assert profiled(tmp_path / "p", [], range(1, 4)) == []
