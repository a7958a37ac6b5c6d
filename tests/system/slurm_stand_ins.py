"""sbatch, srun, scancel and scontrol as far as a script needs them, on one machine: every node is this one.

A link to this file under one of these names runs that command. They share the folder `SLURM_STAND_IN`:

    signal      sbatch sends the script the signal that it asked for when this file appears
    requeued    written by `scontrol requeue`; then sbatch runs the script once more
    step        process ids of what srun started
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

SHARED = Path(os.environ["SLURM_STAND_IN"])
JOB = "4711"


def sbatch(script: str) -> int:
    text = Path(script).read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, flags=re.MULTILINE))
    assert asked["signal"].startswith("B:USR1@") and "requeue" in asked and asked["ntasks-per-node"] == "1"
    environment = {"SLURM_JOB_ID": JOB, "SLURM_NNODES": asked["nodes"], "SLURM_JOB_NODELIST": "node[1-2]"}
    log = asked["output"].replace("%x", asked["job-name"]).replace("%j", JOB)
    while True:
        with open(log, "a") as output:
            job = subprocess.Popen(["bash", script], env={**os.environ, **environment}, stdout=output, stderr=output)
            while job.poll() is None:
                if (SHARED / "signal").exists():
                    (SHARED / "signal").unlink()
                    job.send_signal(signal.SIGUSR1)
                time.sleep(0.1)
        if not (SHARED / "requeued").exists():
            return job.returncode
        (SHARED / "requeued").rename(SHARED / "was_requeued")


def srun(*words: str) -> int:
    command = [word for word in words if not (word.startswith("--") and words.index(word) < words.index("torchrun"))]
    nodes = range(int(os.environ["SLURM_NNODES"]))
    steps = [subprocess.Popen(command, start_new_session=True) for _ in nodes]
    signal.signal(signal.SIGTERM, lambda *_: [each.kill() for each in steps])  # "forcing job termination"
    (SHARED / "step").write_text(" ".join(str(each.pid) for each in steps))
    return max(abs(each.wait()) for each in steps)


def scancel(option: str, job: str) -> int:
    """All processes of the steps receive the signal, as in a control group."""
    assert (option, job) == ("--signal=TERM", JOB)
    for pid in map(int, (SHARED / "step").read_text().split()):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            process.send_signal(signal.SIGTERM)
    return 0


def scontrol(action: str, *words: str) -> int:
    if action == "show":
        assert words == ("hostnames", "node[1-2]")
        print("localhost\nnode2")
    else:
        assert (action, words) == ("requeue", (JOB,))
        (SHARED / "requeued").touch()
    return 0


if __name__ == "__main__":
    commands = {"sbatch": sbatch, "srun": srun, "scancel": scancel, "scontrol": scontrol}
    raise SystemExit(commands[Path(sys.argv[0]).stem](*sys.argv[1:]))
