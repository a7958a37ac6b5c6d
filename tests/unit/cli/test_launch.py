"""`onmt_llm_launch`: what a script asks for, and the numbers that must agree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from onmt_llm.cli.launch import main


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("a b\n")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    run = {"data": {"x": {"path_txt": "train.txt"}}, "src_vocab": "vocab.txt", "save_model": "run/my model"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return tmp_path / "run.yaml"


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["slurm", "-config", "run.yaml", *words]) != 0
    return capsys.readouterr().err


def test_a_job_of_slurm(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-nodes", "4", "-gpus_per_node", "8", "-cpus_per_process", "6", "-time", "1d12h30m", "-partition", "gpu"]
    words += ["-learning_rate", "1e-3", "-modules", "cuda", "gcc/12", "-commands", "source 'my env/activate'"]
    assert main(["slurm", "-config", "run.yaml", *words, "-output", "jobs/train.slurm"]) == 0
    text = Path("jobs/train.slurm").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, flags=re.MULTILINE))
    folder = config.parent.resolve()
    assert asked == {
        "job-name": "my_model",
        "nodes": "4",
        "ntasks-per-node": "1",
        "gpus-per-node": "8",
        "cpus-per-task": "48",
        "time": "1-12:30:00",
        "partition": "gpu",
        "signal": "B:USR1@120",
        "requeue": "",
        "open-mode": "append",
        "output": f"{folder}/jobs/%x-%j.log",
    }
    flat = text.replace(" \\\n   ", "")
    assert "--nnodes=4 --nproc_per_node=8 " in flat and '--rdzv_endpoint="$head:29500"' in flat
    assert "-m onmt_llm.cli.train -config run.yaml -learning_rate 1e-3 -train_from auto -world_size 32 &" in flat
    assert f"cd {folder}\nmodule load cuda gcc/12\nsource 'my env/activate'\n" in text
    assert subprocess.run(["bash", "-n", "jobs/train.slurm"], check=True, capture_output=True).stderr == b""
    assert main(["slurm", "-config", "run.yaml", "-output", "jobs/train.slurm"]) == 2
    assert "-overwrite_script" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-nodes", "2", "-gpus_per_node", "4", "-world_size", "4"], "'world_size' must be 8 on 2 nodes with 4 proc"),
        (["-nodes", "3", "-shard", "full", "-shard_size", "2"], "'shard_size' must divide the number of processes, 3"),
        (
            ["-nodes", "3", "-tensor_parallel", "2"],
            "'tensor_parallel' must divide the number of processes, 3, but is 2",
        ),
        (["-nodes", "3", "-global_batch_size", "100"], "'global_batch_size' must be a multiple of"),
        (["-gpus_per_node", "4", "-processes_per_node", "2"], "processes_per_node must be gpus_per_node, 4"),
        (["-train_from", "vocab.txt"], "'train_from' must be auto in a run that may be started again"),
        (["-keep_checkpoint", "0"], "'keep_checkpoint' must not be 0"),
        (["-time", "100"], "time must be at least twice save_seconds, 240 s, but is 100 s"),
        (["-partition", "gpu\n#SBATCH --exclusive"], "must be without spaces"),
        (["-nodes", "2", "-optimizer_in_backward", "-max_grad_norm", "0"], "2 processes sum their gradients"),
    ],
)
def test_numbers_that_do_not_agree(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sentence in refusal(capsys, *words)


def test_scripts_without_an_output_are_printed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["torchrun", "-config", "run.yaml", "-gpus_per_node", "0", "-processes_per_node", "2"]) == 0
    text = capsys.readouterr().out
    assert "--standalone" in text and "-world_size 2 -device cpu" in text


def test_the_script_of_ray_trains_with_the_same_options(config: Path) -> None:
    assert main(["ray", "-config", "run.yaml", "-nodes", "2", "-seed", "1", "-output", "train.sh"]) == 0
    assert (
        "onmt_llm.cli.launch ray -config run.yaml -seed 1 -train_from auto -nodes 2\n" in Path("train.sh").read_text()
    )
