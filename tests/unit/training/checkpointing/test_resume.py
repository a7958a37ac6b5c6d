"""Resuming a run: `train_from: auto`, damaged checkpoints, background saves, kept checkpoints, rollback."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from onmt_llm.config.data import DataConfig
from onmt_llm.config.train import StartConfig, TrainConfig
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.training.checkpointing import background, saver
from onmt_llm.training.checkpointing.resume import log_changes
from onmt_llm.training.result import RunStatus, TrainResult, has_ended, read_status
from onmt_llm.training.setup.layers import LayerPlan
from onmt_llm.training.setup.run_setup import state_to_resume
from onmt_llm.training.setup.start import Start
from onmt_llm.training.state import Progress, SavedState, TrainingState, read_state

AVERAGED = {"learning_rate": 0.01, "average_decay": 0.05}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    caplog.set_level("INFO")
    return caplog


def go(task: Any, name: str, *, run: dict[str, Any] | None = None, **sections: Any) -> TrainResult:
    """Train `name`, 6 steps with a checkpoint every 2, from where it is."""
    settings = {
        "save_model": str(task.folder / name / "toy"),
        "train_from": "auto",
        "seed": 7,
        "train_steps": 6,
        "save_checkpoint_steps": 2,
        **(run or {}),
    }
    return task.run(name, run=settings, **{"optimizer": AVERAGED, **sections})


def prefix(task: Any, name: str) -> str:
    """The run's `save_model`."""
    return str(task.folder / name / "toy")


def names(task: Any, name: str) -> list[str]:
    """Directories of checkpoints."""
    return sorted(path.name for path in (task.folder / name).glob("*_step_*"))


def rows(task: Any, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (task.folder / name / "toy_metrics.jsonl").read_text().splitlines()]


def assert_equal(task: Any, one: str, other: str) -> None:
    """Two checkpoints have the same weights, averages and optimiser, to the bit."""
    for file in ("model.safetensors", "train_state/optimizer.safetensors"):
        assert (task.folder / one / file).read_bytes() == (task.folder / other / file).read_bytes()
    averages = (task.tensors(f"{name}_ema") for name in (one, other))
    assert all(torch.equal(*pair) for pair in zip(*(a.values() for a in averages), strict=True))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def test_auto_begins_goes_on_and_ends(copy_task: Any, log: pytest.LogCaptureFixture) -> None:
    assert go(copy_task, "whole", run={"train_steps": 8}).status == "finished"
    assert "there is no checkpoint of" in log.text
    assert go(copy_task, "part").step == 6
    log.clear()
    result = go(copy_task, "part", run={"train_steps": 8, "keep_checkpoint": 1})
    assert (result.status, result.step) == ("finished", 8)
    assert "train_from auto: resuming from" in log.text and "Resuming after step 6" in log.text
    assert "train_steps is 8 now; it was 6" in log.text
    assert_equal(copy_task, "whole/toy_step_8", "part/toy_step_8")
    assert names(copy_task, "part") == ["toy_step_8", "toy_step_8_ema"]
    assert go(copy_task, "part", run={"train_steps": 8}).status == "already done"


def test_auto_begins_with_another_checkpoint_and_then_with_its_own(copy_task: Any, log: Any) -> None:
    assert go(copy_task, "base").step == 6
    lora = {"lora": {"lora_layers": ["q_proj"]}, "optimizer": {"learning_rate": 0.01}}
    start = {"init_from": str(copy_task.folder / "base/toy_step_6"), "train_steps": 2}
    quantised = {"quant_layers": ["linear_keys"], "quant_type": "int8"}
    assert go(copy_task, "tuned", run=start, quantization=quantised, **lora).step == 2
    assert go(copy_task, "tuned", run={**start, "train_steps": 4}, **lora).step == 4
    assert names(copy_task, "tuned") == ["toy_step_2", "toy_step_4"]
    assert "Resuming after step 2" in log.text
    assert "quant_layers is" not in log.text and "quant_type is" not in log.text  # the adapter keeps its own


def test_changed_options_are_logged_those_of_corpora_too(log: Any) -> None:
    before = {"template": None, "data": {"a": {"weight": 2, "path_src": "x"}, "b": {"path_src": "y"}}}
    log_changes(before, {"template": "chatml", "new": 1, "data": {"a": {"path_src": "x"}}})
    assert [record.getMessage() for record in log.records] == [
        "template is chatml now; it was not set.",
        "data.a.weight is not set now; it was 2.",
        "data.b is not set now; it was {'path_src': 'y'}.",
    ]


def test_a_signal_after_the_last_update_waits_for_the_checkpoint(
    copy_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saver.write_optimizer

    def write_slowly(directory: Path, state: TrainingState) -> None:
        time.sleep(0.3)  # the loop has ended
        os.kill(os.getpid(), signal.SIGINT)
        write(directory, state)

    monkeypatch.setattr(saver, "write_optimizer", write_slowly)
    result = go(copy_task, "last", run={"save_checkpoint_steps": 6})
    assert (result.status, result.exit_code) == ("finished", 0)
    assert "toy_step_6" in names(copy_task, "last")


def test_a_run_with_another_objective_is_not_resumed() -> None:
    saved = SavedState(Path("state"), Progress(step=3), "adamw", options={"objective": "sft"})
    start = cast(Start, SimpleNamespace(saved=saved, old_codec=None))
    config = TrainConfig(corpora=DataConfig(objective="dpo"), start=StartConfig(train_from="m_step_3"))
    with pytest.raises(ConfigError, match="objective must be sft, as in the run that m_step_3 resumes, but is dpo"):
        state_to_resume(config, start, cast(LayerPlan, None))


def test_a_flipped_byte_is_noticed_and_the_checkpoint_before_is_used(copy_task: Any, log: Any) -> None:
    go(copy_task, "whole")
    go(copy_task, "part", run={"train_steps": 4})
    newest = copy_task.folder / "part/toy_step_4"
    flip(newest / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"toy_step_4 must be intact .* model\.safetensors has") as caught:
        go(copy_task, "part", run={"train_from": str(newest)})
    assert caught.value.exit_code == 4 and "auto" in (caught.value.hint or "")
    assert go(copy_task, "part").step == 6
    assert "toy_step_4 is damaged (model.safetensors has other values in" in log.text
    assert "resuming from" in log.text and "Resuming after step 2" in log.text
    assert "toy_step_4.damaged" in names(copy_task, "part")
    assert_equal(copy_task, "whole/toy_step_6", "part/toy_step_6")


def test_training_goes_on_while_a_checkpoint_is_written(copy_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    go(copy_task, "waiting", safety={"save_async": False})
    write, reached = saver.write_optimizer, []

    def slowly(directory: Path, state: TrainingState) -> None:
        deadline = time.monotonic() + 5
        while json.loads(state.json_text)["progress"]["step"] == 2 and time.monotonic() < deadline and not is_at(4):
            time.sleep(0.01)
        reached.append(is_at(4))
        write(directory, state)

    def is_at(step: int) -> bool:
        return any(row["step"] >= step for row in rows(copy_task, "going_on"))

    monkeypatch.setattr(saver, "write_optimizer", slowly)
    go(copy_task, "going_on", logging={"progress": "none", "report_every": 1})
    assert reached[0]
    for step in (2, 4, 6):
        assert_equal(copy_task, f"waiting/toy_step_{step}", f"going_on/toy_step_{step}")


def test_without_memory_for_a_copy_training_waits(copy_task: Any, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "available_memory", lambda: 1000)
    go(copy_task, "small")
    assert "training waits while a checkpoint is written" in log.text
    assert go(copy_task, "small").status == "already done"


def test_a_disk_without_room_is_told_before_anything_is_written(
    copy_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr("onmt_llm.atomic.shutil.disk_usage", lambda place: usage)
    with pytest.raises(CheckpointError, match=r"toy_step_2 needs 1,\d+,\d+ bytes on the disk, but 5,000 are free"):
        go(copy_task, "full")
    assert names(copy_task, "full") == []


def test_the_best_checkpoint_is_saved_and_stays(copy_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ppl = iter([5.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0])
    judge = "onmt_llm.training.validation.validate.Validator.__call__"
    from onmt_llm.training.metrics.reporter import Totals, ValidationResult

    monkeypatch.setattr(judge, lambda self, step: ValidationResult(Totals(nll=next(ppl), tokens=1)))
    settings = {"train_steps": 8, "save_checkpoint_steps": 4, "valid_steps": 1, "keep_checkpoint": 1}
    go(copy_task, "best", run={**settings, "train_steps": 4}, safety={"save_best": True}, optimizer={})
    assert names(copy_task, "best") == ["toy_step_2", "toy_step_4"]
    go(copy_task, "best", run={**settings, "train_steps": 7}, safety={"save_best": True}, optimizer={})
    assert names(copy_task, "best") == ["toy_step_2", "toy_step_7"]
    saved = read_state(copy_task.folder / "best/toy_step_7")
    assert saved is not None and saved.progress.best_step == 2


def test_a_signal_ends_the_run_with_the_shells_code_and_a_validation_that_was_due_is_made_up_for(
    copy_task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"train_steps": 6, "save_checkpoint_steps": 4, "valid_steps": 3}
    go(copy_task, "whole", run=settings)
    from onmt_llm.training.optim.ema import EMA

    update = EMA.update

    def told_at_three(self: EMA, step: int) -> None:
        update(self, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EMA, "update", told_at_three)
    result = go(copy_task, "part", run=settings)
    assert (result.status, result.step, result.exit_code) == ("interrupted", 3, 128 + signal.SIGTERM)
    assert read_status(prefix(copy_task, "part")) is RunStatus.INTERRUPTED
    assert has_ended(prefix(copy_task, "whole")) and not has_ended(prefix(copy_task, "part"))
    monkeypatch.undo()
    assert go(copy_task, "part", run=settings).status == "finished"
    assert has_ended(prefix(copy_task, "part"))
    whole, part = (
        [(r["step"], r["ppl"]) for r in rows(copy_task, n) if r["split"] == "valid"] for n in ("whole", "part")
    )
    assert whole == part and [step for step, _ in whole] == [3, 6]
    assert_equal(copy_task, "whole/toy_step_6", "part/toy_step_6")


def test_time_that_is_up_ends_the_run_for_now(copy_task: Any, log: Any) -> None:
    result = go(copy_task, "short", safety={"max_time": "0.001s"})
    assert (result.status, result.step, result.exit_code) == ("out of time", 1, 0)
    assert not has_ended(prefix(copy_task, "short"))
    assert "Stopped by max_time after step 1" in log.text
    assert go(copy_task, "short").step == 6


def test_a_run_that_stopped_early_is_not_begun_again(copy_task: Any, log: Any) -> None:
    settings = {"valid_steps": 1, "train_steps": 50}
    stop = {"validation": {"early_stopping": 1}, "optimizer": {"learning_rate": 5.0, "optim": "sgd"}}
    first = go(copy_task, "early", run=settings, **stop)
    assert first.status == "stopped early" and has_ended(prefix(copy_task, "early"))
    assert go(copy_task, "early", run=settings, **stop).status == "already done"
    assert has_ended(prefix(copy_task, "early"))
    assert f"stopped early at step {first.step}, after 1 validations without improvement in ppl" in log.text
    patient = {**stop, "validation": {"early_stopping": 3}}
    assert go(copy_task, "early", run={**settings, "train_steps": first.step + 1}, **patient).step == first.step + 1


def test_one_curve_in_tensorboard(copy_task: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = copy_task.folder / "events"
    logging = {"progress": "none", "report_every": 1, "tensorboard": True, "tensorboard_log_dir": str(folder)}
    go(copy_task, "curve", run={"train_steps": 5}, logging=logging)
    # as if the run had been killed after step 5, and had saved step 4 only
    (copy_task.folder / "curve/toy_step_5").rename(copy_task.folder / "curve/lost")
    go(copy_task, "curve", logging=logging)
    (run,) = folder.iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    assert [event.step for event in events.Scalars("progress/ppl")] == [1, 2, 3, 4, 5, 6]


def test_a_loss_spike_is_rolled_back_and_its_data_skipped(copy_task: Any, log: Any) -> None:
    rng = random.Random(1)
    lines = [" ".join(rng.choices(["w0", "w1", "w2", "w3"], k=3)) for _ in range(800)]
    # a bucket of 40 that is not like the others: the batches 26 to 30
    lines[200:240] = ["w11 w10 w9"] * 40
    for side in ("src", "tgt"):
        (copy_task.folder / f"train.{side}").write_text("".join(f"{line}\n" for line in lines))
    settings = {"train_steps": 40, "save_checkpoint_steps": 8}
    watch = {"spike_action": "rollback", "spike_window": 20, "spike_threshold": 5.0}
    report = {"logging": {"progress": "none", "report_every": 1}}
    go(copy_task, "poisoned", run=settings, **report)
    assert max(row["loss"] for row in rows(copy_task, "poisoned") if row["step"] > 20) > 4
    log.clear()
    result = go(copy_task, "watched", run=settings, safety=watch, **report)
    assert (result.status, result.step) == ("finished", 40)
    assert "Step 26: the loss is" in log.text and "The run goes back to" in log.text and "toy_step_24" in log.text
    after = [row for row in rows(copy_task, "watched") if row["step"] > 20 and row["split"] == "train"]
    assert [row["step"] for row in after] == list(range(21, 41)) and max(row["loss"] for row in after) < 3
    assert names(copy_task, "watched")[-2:] == ["toy_step_8", "toy_step_8_ema"] and "toy_step_24" in names(
        copy_task, "watched"
    )


def test_a_rollback_without_a_checkpoint_returns_to_the_start(copy_task: Any, log: Any, monkeypatch: Any) -> None:
    from onmt_llm.training.metrics.loss_spikes import SpikeDetector

    ask, asked = SpikeDetector.__call__, []

    def spike_at_three(self: SpikeDetector, progress: Any, loss: float, step: int) -> bool:
        asked.append(step)
        return (
            self.roll_back(progress, "the loss is odd", step)
            if asked.count(3) in (1, 2) and step == 3
            else ask(self, progress, loss, step)
        )

    monkeypatch.setattr(SpikeDetector, "__call__", spike_at_three)
    result = go(copy_task, "back", run={"save_checkpoint_steps": 6}, safety={"spike_action": "rollback"})
    assert (result.status, result.step, asked) == ("finished", 6, [1, 2, 3, 1, 2, 3, 1, 2, 3, 4, 5, 6])
    assert "goes back to its start" in log.text
