"""The run folder: naming, keeping and choosing checkpoints, and who may write."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from onmt_llm.checkpoint.directory import MANIFEST_FILE, write_manifest
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.training import run_folder
from onmt_llm.training.result import RunStatus, TrainResult, status_file, write_status


def test_only_complete_checkpoints_of_the_prefix_count(tmp_path: Path) -> None:
    for name in ("m_step_10", "m_step_2", "m_step_x", "other_step_3", "m_step_4"):
        (tmp_path / name).mkdir()
        if name != "m_step_4":
            (tmp_path / name / "config.yaml").write_text("")
    assert list(run_folder.checkpoints(str(tmp_path / "m"))) == [2, 10]
    assert run_folder.checkpoints(str(tmp_path / "nowhere" / "m")) == {}


def test_checkpoints_are_watched_until_the_run_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model = str(tmp_path / "m")
    write_status(save_model, TrainResult(RunStatus.INTERRUPTED, 2))
    statuses = iter(["", "nonsense", RunStatus.OUT_OF_TIME, RunStatus.STOPPED_EARLY])

    def sleep(seconds: float) -> None:
        """The run goes on: a checkpoint, and how it ended."""
        assert seconds == 7
        status, step = next(statuses), len(run_folder.checkpoints(save_model)) + 1
        status_file(save_model).write_text(f'{{"status": "{status}", "step": {step}}}' if status else "")
        (tmp_path / f"m_step_{step}").mkdir()
        (tmp_path / f"m_step_{step}/config.yaml").write_text("")

    monkeypatch.setattr(run_folder.time, "sleep", sleep)
    looks = [([*found], last) for found, last in run_folder.watched_checkpoints(save_model, every=7)]
    assert looks[-2:] == [([1, 2, 3], False), ([1, 2, 3, 4], True)]
    write_status(save_model, TrainResult(RunStatus.INTERRUPTED, 2))
    assert len([*run_folder.watched_checkpoints(save_model, every=0)]) == 1
    with pytest.raises(ConfigError, match="must be the prefix of at least one checkpoint"):
        next(run_folder.watched_checkpoints(str(tmp_path / "n"), every=0))
    damaged, path = CheckpointError("it is damaged"), tmp_path / "m_step_1"
    run_folder.pass_over(path, damaged, last=False)  # it may still be copied
    run_folder.pass_over(tmp_path / "removed", damaged, last=True)
    with pytest.raises(CheckpointError, match="it is damaged"):
        run_folder.pass_over(path, damaged, last=True)


def test_what_a_checkpoint_would_take_the_place_of(tmp_path: Path) -> None:
    base = checkpoint(tmp_path, 2)

    def check(steps: range, *inputs: Path, every: int = 1) -> None:
        run_folder.check_checkpoint_paths(str(tmp_path / "m"), steps, every=every, inputs=inputs)

    (tmp_path / "m_step_4").mkdir()
    (tmp_path / "link").symlink_to(base)
    check(range(1, 10))
    check(range(1, 10), tmp_path)
    check(range(3, 10), base)
    check(range(1, 10), base, every=3)
    for steps, every in ((range(1, 10), 2), (range(1, 3), 5)):
        with pytest.raises(CheckpointError, match=r"starts from .*m_step_2, but would write its own"):
            check(steps, tmp_path / "link", every=every)
    (tmp_path / "m_step_4/notes.txt").write_text("")
    (tmp_path / "m_step_6").write_text("")
    for steps in (range(4, 5), range(5, 7)):
        with pytest.raises(CheckpointError, match=r"would be written to .*m_step_\d, but that is not a checkpoint"):
            check(steps, every=9)
    check(range(7, 10))


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


def checkpoint(folder: Path, step: int, *, average: bool = False) -> Path:
    """A complete checkpoint, as far as its folder goes."""
    path = folder / f"m_step_{step}"
    for one in (path, run_folder.ema_path(path))[: 2 if average else 1]:
        (one / "train_state").mkdir(parents=True)
        (one / "config.yaml").write_text("")
        (one / "train_state/state.json").write_text('{"version": 2}')
        write_manifest(one)
    return path


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes() or b"x")
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_the_newest_that_is_intact_is_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    prefix = str(tmp_path / "m")
    assert run_folder.newest_of_run(prefix) is None
    paths = [checkpoint(tmp_path, step, average=True) for step in (2, 4, 6, 8, 10)]
    assert run_folder.newest_of_run(prefix) == paths[-1]
    flip(paths[4] / "train_state/state.json")
    flip(tmp_path / "m_step_8_ema/train_state/state.json")
    (paths[2] / MANIFEST_FILE).unlink()
    assert run_folder.newest_of_run(prefix) == paths[1]
    assert [path.name for path in sorted(tmp_path.glob("*.damaged"))] == []
    assert "m_step_10 is damaged (train_state/state.json has another checksum" in caplog.text
    assert "m_step_8 is damaged (m_step_8_ema/train_state/state.json has another checksum" in caplog.text
    assert "m_step_6 is damaged (manifest.json is missing)" in caplog.text
    assert run_folder.newest_of_run(prefix, set_aside=True) == paths[1]
    assert list(run_folder.checkpoints(prefix)) == [2, 4]
    assert len(list(tmp_path.glob("*.damaged"))) == 6
    with pytest.raises(CheckpointError, match=r"must be intact to be resumed, but is damaged: config\.yaml is"):
        (paths[1] / "config.yaml").unlink()
        run_folder.check_intact(paths[1])


def test_checkpoints_of_before_there_was_a_manifest_are_trusted(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 3)
    (path / MANIFEST_FILE).unlink()
    (path / "train_state/state.json").write_text('{"version": 1}')
    assert run_folder.newest_of_run(str(tmp_path / "m")) == path


def test_one_run_alone_writes_in_a_folder(tmp_path: Path) -> None:
    prefix = tmp_path / "run/m"
    with run_folder.run_lock(str(prefix)):
        message = r"Another run is writing checkpoints of save_model .*run/m"
        with pytest.raises(CheckpointError, match=message), run_folder.run_lock(str(prefix)):
            pass
        with run_folder.run_lock(str(tmp_path / "run/other")):
            (tmp_path / "run/file").write_text("")
    with run_folder.run_lock(str(prefix)):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]
    with run_folder.run_lock(str(tmp_path / "new/m")):
        pass
    assert not (tmp_path / "new").exists()


def test_a_lock_whose_folder_was_removed_is_taken_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    prefix = str(tmp_path / "run/m")
    with run_folder.run_lock(prefix) as lock:
        lock.renew()
        assert not caplog.records
        shutil.rmtree(tmp_path / "run")
        lock.renew()
        assert "was removed during the run" in caplog.text
        with pytest.raises(CheckpointError, match="Another run"), run_folder.run_lock(prefix):
            pass
        shutil.rmtree(tmp_path / "run")
        with run_folder.run_lock(prefix), pytest.raises(CheckpointError, match="Another run"):
            lock.renew()
        (tmp_path / "run").mkdir()
        other = run_folder.RunLock(prefix)
    assert (tmp_path / "run/.m.lock").exists()  # of the other one
    other.release()
    assert not list((tmp_path / "run").iterdir())


def test_pruning_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "m_step_1").symlink_to(checkpoint(tmp_path / "disk", 1))
    checkpoint(tmp_path, 2)
    run_folder.prune(str(tmp_path / "m"), keep=1, newest=2)
    assert list(run_folder.checkpoints(str(tmp_path / "m"))) == [2]
    assert (tmp_path / "disk/m_step_1/config.yaml").exists()


def test_what_killed_runs_left_is_cleared_away(tmp_path: Path) -> None:
    # The same number of process on the same machine, as in a container that was started again; and another machine.
    mine = f"{socket.gethostname()}-{os.getpid()}"
    for name in (
        f".m_step_4.tmp-{mine}",
        ".m_step_5_ema.tmp-node17-12",
        f".m_step_6.old-{mine}",
        ".m_step_2.trash-a-b-1",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
    (tmp_path / ".other_step_4.tmp-node17-12").mkdir()
    with run_folder.run_lock(str(tmp_path / "m")):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other_step_4.tmp-node17-12", "m_step_6"]
