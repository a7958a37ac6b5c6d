"""A few dozen random byte flips in every kind of input: each is noticed or harmless."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).with_name("byte_flips.py")


@pytest.fixture(scope="module")
def byte_flips() -> ModuleType:
    spec = importlib.util.spec_from_file_location("byte_flips", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["byte_flips"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_flip_is_silent(byte_flips: ModuleType, tmp_path: Path) -> None:
    byte_flips.make_artefacts(tmp_path)
    targets = byte_flips.TARGETS
    counts, strange = byte_flips.attack(tmp_path, targets, 6 * len(targets), seed=20, each=False)
    assert not strange
    assert all(seen["noticed"] for seen in counts.values())
