"""`onmt_llm_data` reads the YAML of a run exactly as training does, whatever the run starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onmt_llm.cli import data, train
from onmt_llm.errors import CheckpointError

YAML = """
data: {web: {path_src: web.txt}}
save_model: %s
model_task: lm
train_steps: 1
save_checkpoint_steps: 1
batch_size: 2
device: cpu
overwrite: true
"""
NEW = "src_vocab: vocab\nshare_vocab: true\ndecoder_layers: 1\nencoder_layers: 0\nhidden_size: 8\nheads: 2\n"
RESUMED = "train_from: auto\ninit_from: base_step_1\n"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a corpus, and a checkpoint of whose tokens only the checkpoint knows."""
    monkeypatch.chdir(tmp_path)
    Path("web.txt").write_text("a b\nb c\n" * 20)
    Path("vocab").write_text("<unk>\n<blank>\n<s>\n</s>\na\nb\nc\n")
    Path("base.yaml").write_text(YAML % "base" + NEW)
    assert train.main(["-config", "base.yaml"]) == 0
    Path("vocab").unlink()
    Path("run.yaml").write_text(YAML % "run/m" + RESUMED)
    return tmp_path


def test_the_yaml_of_a_resumed_run_is_read_as_training_reads_it(base: Path) -> None:
    for turn in range(2):  # before the run has begun, and when it can go on
        for action in ("report", "sample"):
            assert data.main([action, "-config", "run.yaml"]) == 0
        assert json.loads(Path("run/m_data/report.json").read_text())["corpora"]["web"]["unknown"] == 0
        if turn == 0:
            assert data.main(["pack", "-config", "run.yaml"]) == 0
            assert train.main(["-config", "run.yaml"]) == 0
            # from here on the run resumes from its own checkpoint
            (base / "base_step_1/vocab.txt").unlink()
    assert train.main(["-config", "run.yaml", "-n_sample", "3"]) == 0


def test_what_training_refuses_is_refused(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(YAML % "run/m" + "train_from: nowhere\n")
    for action in ("report", "sample", "pack"):
        assert data.main([action, "-config", "run.yaml"]) == CheckpointError.exit_code
        assert "nowhere" in capsys.readouterr().err
