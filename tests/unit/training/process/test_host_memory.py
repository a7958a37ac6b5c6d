"""Memory of this process as the system reports it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onmt_llm.training.process import host_memory
from onmt_llm.training.process.host_memory import limit_onednn_cache, peak_memory, resident_memory

MIB = 1 << 20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_what_is_allocated_counts() -> None:
    before, peak = resident_memory(), peak_memory("cpu")["peak_rss"]
    block = np.ones(64 * MIB, dtype=np.uint8)
    assert resident_memory() - before > 48 * MIB and block[0] == 1
    assert peak_memory("cpu")["peak_rss"] >= max(peak, resident_memory() - 8 * MIB)


def test_without_proc_there_are_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_STATUS", tmp_path / "none")
    assert (resident_memory(), peak_memory("cpu")) == (0, {})


def test_the_users_limit_of_the_cache_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, "7")
    limit_onednn_cache()
    assert host_memory.os.environ[name] == "7"
    monkeypatch.delenv(name)
    limit_onednn_cache()
    assert host_memory.os.environ[name] == "256"
