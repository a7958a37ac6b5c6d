"""Files that an earlier version wrote, before modules were moved, can be opened, and runs resume from them exactly.

`tests/data/before_moves` was written at f48b4ae by the commands with the two YAMLs in it: checkpoints with training
state after 4 of 8 updates, token shards (`onmt_llm_data pack`), the line index of `a.src`, and `step_8.safetensors`,
the weights of the runs that were not interrupted.
"""

from __future__ import annotations

import shutil
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onmt_llm.cli.train import main
from onmt_llm.data.readers.index_file import Index

BEFORE = Path(__file__).parent.parent / "data/before_moves"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "before"
    shutil.copytree(BEFORE, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["run", "lm"], ids=["translation", "packed rows"])
def test_a_run_goes_on_as_the_version_that_began_it_would_have(written: Path, name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["-config", f"{name}.yaml"]) == 0
    finally:
        torch.set_num_threads(threads)
    weights = load_file(written / name / "m_step_8/model.safetensors")
    expected = load_file(written / name / "step_8.safetensors")
    assert weights.keys() == expected.keys()
    for key, tensor in weights.items():
        # equal to the bit where the processor is of the same kind
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")


def test_a_line_index_is_read() -> None:
    file = BEFORE / "index/a.lines.index"
    index = Index(file, 1, identity=file.read_bytes()[24:40])
    lines = (BEFORE / "a.src").read_bytes().splitlines(keepends=True)
    assert index.at(0, index.count) == list(accumulate(map(len, lines), initial=0))
