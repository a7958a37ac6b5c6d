"""Every script that `onmt_llm_launch` writes is run on this machine, and trains the same weights."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from onmt_llm.checkpoint.files.safetensors import SafetensorsSet
from onmt_llm.cli.launch import main
from onmt_llm.training.run_folder import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
WORDS = [f"w{number}" for number in range(12)]
STEPS = 40


class Site:
    """A folder with a corpus, an environment for scripts, and stand-ins for SLURM's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = folder / "bin"
        tools.mkdir()
        for name in ("sbatch", "srun", "scancel", "scontrol"):
            (tools / name).write_text(f'#!/bin/bash\nexec {sys.executable} {folder}/{name}.py "$@"\n')
            (tools / name).chmod(0o755)
            (folder / f"{name}.py").symlink_to(Path(__file__).with_name("slurm_stand_ins.py"))
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "SLURM_STAND_IN": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        rng = random.Random(1)
        lines = [" ".join(rng.choices(WORDS, k=rng.randint(2, 6))) for _ in range(400)]
        (folder / "train.txt").write_text("\n".join(lines) + "\n")
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")

    def launch(self, kind: str, name: str, *words: str) -> Path:
        """Write the script of a run; returns it."""
        run = {
            "data": {"train": {"path_txt": "train.txt"}},
            "src_vocab": "vocab.txt",
            "save_model": f"{name}/m",
            "architecture": {"decoder_layers": 1, "hidden_size": 16, "heads": 2, "ffn_size": 24},
            "batch_size": 8,
            "bucket_size": 64,
            "learning_rate": 1e-3,
            "optim": "adamw",
            "train_steps": STEPS,
            "save_checkpoint_steps": 10,
            "seed": 3,
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(run))
        script = self.folder / f"{name}.sh"
        settings = ["-gpus_per_node", "0", "-cpus_per_process", "1", *words, "-output", str(script)]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            assert main([kind, "-config", f"{name}.yaml", *settings]) == 0
        return script

    def run(self, *command: str) -> None:
        self.wait(self.start(*command))

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait(self, process: subprocess.Popen[str]) -> None:
        said, _ = process.communicate(timeout=1200)
        assert process.returncode == 0, said[-3000:]

    def weights(self, name: str) -> dict[str, Any]:
        path = checkpoints(str(self.folder / name / "m"))[STEPS]
        tensors = SafetensorsSet(path, [file.name for file in path.glob("*.safetensors")], listed=None)
        return {each: tensors.tensor(each) for each in tensors.names()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """With a run of two processes that torchrun started."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.run("bash", str(site.launch("torchrun", "alone", "-processes_per_node", "2")))
    return site


def assert_same_weights(site: Site, names: Sequence[str]) -> None:
    wanted = site.weights("alone")
    for name in names:
        got = site.weights(name)
        assert got.keys() == wanted.keys()
        assert [each for each in wanted if not wanted[each].equal(got[each])] == []


def test_torchrun_on_two_machines(site: Site) -> None:
    script = str(site.launch("torchrun", "two", "-nodes", "2", "-head_port", "29617"))
    machines = [site.start("bash", script, "localhost") for _ in range(2)]
    for machine in machines:
        site.wait(machine)
    assert_same_weights(site, ["two"])


def test_a_job_of_slurm_saves_queues_itself_again_and_goes_on(site: Site) -> None:
    script = site.launch("slurm", "job", "-nodes", "2", "-head_port", "29618")
    job = site.start("sbatch", str(script))
    while not list((site.folder / "job").glob("m_step_10")):
        assert job.poll() is None, (site.folder / "m-4711.log").read_text()[-3000:]
        time.sleep(0.1)
    (site.folder / "signal").touch()
    site.wait(job)
    assert (site.folder / "was_requeued").exists()
    log = (site.folder / "m-4711.log").read_text()
    assert "Stopped by SIGTERM after step" in log and "Traceback" not in log.split("SIGTERM", 1)[0]
    assert_same_weights(site, ["job"])


def test_a_job_of_ray(site: Site) -> None:
    pytest.importorskip("ray")
    site.environment["RAY_ADDRESS"] = "local"
    site.run("bash", str(site.launch("ray", "ray", "-processes_per_node", "2")))
    assert_same_weights(site, ["ray"])


def test_a_run_of_ray_goes_on_when_a_process_is_killed(site: Site) -> None:
    pytest.importorskip("ray")
    site.environment["RAY_ADDRESS"] = "local"
    words = ("-processes_per_node", "2", "-max_restarts", "1")
    job = site.start("bash", str(site.launch("ray", "killed", *words)))
    workers: list[psutil.Process] = []
    while not (site.folder / "killed/m_step_10").exists():
        assert job.poll() is None, job.communicate()[0][-3000:]
        workers = workers if len(workers) == 2 else workers_of_ray(job.pid)
        time.sleep(0.01)
    assert len(workers) == 2
    workers[-1].kill()
    said, _ = job.communicate(timeout=1200)
    assert job.returncode == 0 and "Resuming after step" in said, said[-3000:]
    assert_same_weights(site, ["killed"])


def workers_of_ray(pid: int) -> list[psutil.Process]:
    """The training processes of Ray below a process."""
    found = []
    for each in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            if "ray::RayTrainWorker" in "".join(each.cmdline()):
                found.append(each)
    return found
