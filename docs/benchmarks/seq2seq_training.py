"""Speed, memory and perplexity of encoder-decoder training, compared with OpenNMT-py and eole.

    python docs/benchmarks/seq2seq_training.py -data DIR -opennmt VENV/bin/python -steps 100 -rounds 2
    python docs/benchmarks/seq2seq_training.py -data DIR -eole VENV/bin/python -dtype bf16 -steps 20

DIR contains `src-train.txt` and `tgt-train.txt`; the last 500 lines are held out for validation. VENV has OpenNMT-py
3.5.1 or eole 0.6 (omit both to time only ours). All use the same settings, SentencePiece model and vocabulary, and run
alternately in separate processes, so that other work on the machine affects all. Target tokens per second are counted
and timed by each program, without the first report; memory is the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import yaml

HELD_OUT = 500
VOCABULARY = 8000

# OpenNMT-py's validation loss includes label smoothing, so it gives no perplexity: off in validation, on in training.
OPENNMT = """
import sys
from onmt.bin.train import main
from onmt.utils.loss import LossCompute

build = LossCompute.from_opts

def from_opts(opt, model, vocab, train=True):
    smoothing = opt.label_smoothing
    opt.label_smoothing = smoothing if train else 0.0
    try:
        return build(opt, model, vocab, train)
    finally:
        opt.label_smoothing = smoothing

LossCompute.from_opts = from_opts
sys.argv = ["onmt_train", *sys.argv[1:]]
main()
"""
EOLE = "import sys; from eole.bin.main import main; sys.argv = ['eole', 'train', *sys.argv[1:]]; main()"
OURS = "import sys; from onmt_llm.cli.train import main; sys.exit(main())"


@dataclass(frozen=True)
class Run:
    """Results of one run of one program: target tokens per second, peak MiB, validation perplexity, total seconds."""

    tokens_per_second: float
    mebibytes: float
    perplexity: float
    seconds: float


def prepare(data: Path, work: Path) -> None:
    """Corpora, SentencePiece model and vocabulary."""
    for side in ("src", "tgt"):
        lines = (data / f"{side}-train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (work / f"train.{side}").write_text("".join(lines[:-HELD_OUT]), encoding="utf-8")
        (work / f"valid.{side}").write_text("".join(lines[-HELD_OUT:]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=f"{work}/train.src,{work}/train.tgt",
        model_prefix=f"{work}/joint",
        vocab_size=VOCABULARY,
        model_type="bpe",
        normalization_rule_name="identity",
        character_coverage=1.0,
        byte_fallback=True,
        minloglevel=2,
    )
    pieces = [line.split("\t")[0] for line in (work / "joint.vocab").read_text(encoding="utf-8").splitlines()]
    tokens = [piece for piece in pieces if piece not in ("<unk>", "<s>", "</s>")]
    (work / "vocab").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")


def settings(work: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """The YAML of both programs."""
    return {
        "data": {
            "corpus": {"path_src": f"{work}/train.src", "path_tgt": f"{work}/train.tgt", "weight": 1},
            "valid": {"path_src": f"{work}/valid.src", "path_tgt": f"{work}/valid.tgt"},
        },
        "transforms": ["sentencepiece"],
        "src_subword_model": f"{work}/joint.model",
        "tgt_subword_model": f"{work}/joint.model",
        "src_vocab": f"{work}/vocab",
        "tgt_vocab": f"{work}/vocab",
        "share_vocab": True,
        "share_embeddings": True,
        "share_decoder_embeddings": True,
        "encoder_type": "transformer",
        "decoder_type": "transformer",
        "enc_layers": 3,
        "dec_layers": 3,
        "hidden_size": 256,
        "word_vec_size": 256,
        "transformer_ff": 1024,
        "heads": 4,
        "position_encoding": True,
        "self_attn_type": "scaled-dot",
        "param_init": 0.0,
        "param_init_glorot": True,
        "dropout": [arguments.dropout],
        "attention_dropout": [arguments.attention_dropout],
        "dropout_steps": [0],
        "batch_type": "tokens",
        "batch_size": 4096,
        "valid_batch_size": 16,
        "normalization": "tokens",
        "bucket_size": 10000,
        "num_workers": 0,
        "optim": "adam",
        "adam_beta2": 0.998,
        "decay_method": "noam",
        "learning_rate": 1.0,
        "warmup_steps": max(arguments.steps, 1),
        "max_grad_norm": 1.0,
        "label_smoothing": 0.1,
        "model_dtype": arguments.dtype,
        "train_steps": arguments.steps,
        "valid_steps": arguments.steps,
        "save_checkpoint_steps": arguments.steps,
        "report_every": arguments.report_every,
        "seed": 1,
    }


def in_eole(config: dict[str, object]) -> dict[str, object]:
    """The same settings in eole's sections and names; 16 bits mean autocast in eole."""
    config = dict(config)
    kept = ("data", "transforms", "src_vocab", "tgt_vocab", "share_vocab", "report_every", "seed")
    shape = ("hidden_size", "heads", "transformer_ff", "share_embeddings", "share_decoder_embeddings")
    training = (
        *("dropout", "attention_dropout", "dropout_steps", "batch_type", "batch_size", "valid_batch_size"),
        *("normalization", "bucket_size", "num_workers", "optim", "adam_beta2", "decay_method", "learning_rate"),
        *("warmup_steps", "max_grad_norm", "label_smoothing", "train_steps", "valid_steps", "save_checkpoint_steps"),
    )
    layers = int(str(config["enc_layers"]))
    return {
        **{name: config[name] for name in kept},
        "save_data": f"{config['save_model']}-data",
        "overwrite": True,
        "transforms_configs": {"sentencepiece": {name: config[name] for name in config if "subword_model" in name}},
        "training": {
            **{name: config[name] for name in training},
            "model_path": config["save_model"],
            "compute_dtype": config["model_dtype"],
            "param_init_method": "xavier_uniform",
            "world_size": 0,
            "gpu_ranks": [],
        },
        "model": {
            **{name: config[name] for name in shape},
            "architecture": "transformer",
            "layers": layers,
            "embeddings": {
                "word_vec_size": config["word_vec_size"],
                "position_encoding_type": "SinusoidalInterleaved",
            },
        },
    }


def run(python: str, code: str, folder: Path, config: dict[str, object], threads: int) -> tuple[str, float, float]:
    """Output of the program, its peak memory in MiB and its seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "train.yaml"
    config = {**config, "save_model": f"{folder}/model"}
    file.write_text(yaml.safe_dump(in_eole(config) if code == EOLE else config), encoding="utf-8")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
    }
    log = folder / "log"
    with log.open("wb") as out:
        redirect = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)]
        arguments = [python, "-c", code, "-config", str(file)]
        began = os.times().elapsed
        child = os.posix_spawn(python, arguments, environment, file_actions=redirect)
        _, status, usage = os.wait4(child, 0)
    text = log.read_text(encoding="utf-8", errors="replace")
    if status:
        sys.exit(f"{python} failed:\n{text[-3000:]}")
    return text, usage.ru_maxrss / 1024, os.times().elapsed - began


def run_ours(folder: Path, config: dict[str, object], threads: int) -> Run:
    _, memory, seconds = run(sys.executable, OURS, folder, config, threads)
    rows = [json.loads(line) for line in (folder / "model_metrics.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if row["split"] == "train"]
    perplexity = next(row["ppl"] for row in reversed(rows) if row["split"] == "valid")
    return Run(statistics.median(speeds[1:] or speeds), memory, perplexity, seconds)


def run_theirs(python: str, code: str, folder: Path, config: dict[str, object], threads: int) -> Run:
    text, memory, seconds = run(python, code, folder, config, threads)
    speeds = [float(found) for found in re.findall(r"; +\d+/ *(\d+) tok/s", text)]
    perplexity = float(
        re.findall(r"valid ppl: ([\d.]+)", text.lower().replace("validation perplexity", "valid ppl"))[-1]
    )
    return Run(statistics.median(speeds[1:] or speeds), memory, perplexity, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-data", type=Path, required=True, help="folder with src-train.txt and tgt-train.txt")
    parser.add_argument("-opennmt", help="Python interpreter with OpenNMT-py")
    parser.add_argument("-eole", help="Python interpreter with eole")
    parser.add_argument("-dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("-work", type=Path, help="folder for all files; default: a temporary one")
    parser.add_argument("-steps", type=int, default=100)
    parser.add_argument("-rounds", type=int, default=2)
    parser.add_argument("-report_every", type=int, default=10)
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-dropout", type=float, default=0.1)
    parser.add_argument("-attention_dropout", type=float, default=0.1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "vocab").exists():
            prepare(arguments.data, work)
        config = settings(work, arguments)
        others = {"OpenNMT-py": (arguments.opennmt, OPENNMT), "eole": (arguments.eole, EOLE)}
        runs: dict[str, list[Run]] = {name: [] for name in (*others, "onmt_llm")}
        for number in range(arguments.rounds):
            for name, (python, code) in others.items():
                if python:
                    runs[name].append(run_theirs(python, code, work / f"{name}{number}", config, arguments.threads))
                    print(name, runs[name][-1], flush=True)
            runs["onmt_llm"].append(run_ours(work / f"ours{number}", config, arguments.threads))
            print("onmt_llm", runs["onmt_llm"][-1], flush=True)
    print(report(runs))


def report(runs: dict[str, list[Run]]) -> str:
    """Medians over the rounds, and our ratio to the first other program."""
    names = list(Run.__dataclass_fields__)
    medians = {
        program: {name: statistics.median(getattr(one, name) for one in rounds) for name in names}
        for program, rounds in runs.items()
        if rounds
    }
    lines = [f"| | {' | '.join(medians)} | ratio |", f"|---|{'--:|' * len(medians)}--:|"]
    for name in names:
        values = [figures[name] for figures in medians.values()]
        ratio = f"{values[-1] / values[0]:.3f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {' | '.join(f'{value:,.2f}' for value in values)} | {ratio} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
