"""The folder of a run: checkpoints by name, which stay, which can be gone on from, who may write."""

from __future__ import annotations

from pathlib import Path

from onmt_llm.training import run_folder


def test_only_complete_checkpoints_of_the_prefix_count(tmp_path: Path) -> None:
    for name in ("m_step_10", "m_step_2", "m_step_x", "other_step_3", "m_step_4"):
        (tmp_path / name).mkdir()
        if name != "m_step_4":
            (tmp_path / name / "config.yaml").write_text("")
    assert list(run_folder.checkpoints(str(tmp_path / "m"))) == [2, 10]
    assert run_folder.checkpoints(str(tmp_path / "nowhere" / "m")) == {}


def test_pruning_keeps_the_last_the_later_and_the_protected(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 9):
        (tmp_path / f"m_step_{step}").mkdir()
        (tmp_path / f"m_step_{step}" / "config.yaml").write_text("")
    prefix = str(tmp_path / "m")
    run_folder.prune(prefix, keep=-1, newest=4)
    assert list(run_folder.checkpoints(prefix)) == [1, 2, 3, 4, 9]
    run_folder.prune(prefix, keep=1, newest=4, protected=[tmp_path / "m_step_2"])
    assert list(run_folder.checkpoints(prefix)) == [2, 4, 9]
    assert not list(tmp_path.glob(".*"))
