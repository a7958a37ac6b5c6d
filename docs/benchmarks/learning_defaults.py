"""Learning with the default settings of a new model, compared with OpenNMT-py's: `learning.md` has the figures.

    python docs/benchmarks/learning_defaults.py -data DIR -opennmt VENV/bin/python -work FOLDER
    python docs/benchmarks/learning_defaults.py -work FOLDER -report

DIR contains `src-train.txt` and `tgt-train.txt`, English and German; VENV has OpenNMT-py 3.5.1. Each cell (program,
task, model, schedule, seed) runs in a separate process, on one thread, and appends a line to FOLDER/results.jsonl;
cells with a line are not run again. Both programs get the same YAML in OpenNMT-py's names. It omits the initial state
of a model: initialisation, biases, scales.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

Cell = dict[str, Any]
Lines = list[tuple[list[str], list[str]]]

PROGRAMS = Path(__file__).with_name("learning_programs.py")
HELD_OUT = 300
TRAINED = 8000
VALIDATIONS = 5
TASKS = ("copy", "sort", "transliterate", "en-de")
MODELS = ("seq2seq", "lm")
SEEDS = (1, 2, 3)
STEPS = 500
SCHEDULES: dict[str, dict[str, object]] = {
    "noam": {"optim": "adam", "adam_beta2": 0.998, "decay_method": "noam", "learning_rate": 0.4, "warmup_steps": 200},
    "constant": {"optim": "adam", "decay_method": "none", "learning_rate": 0.001},
}
SHAPE: dict[str, object] = {
    "encoder_type": "transformer",
    "decoder_type": "transformer",
    "enc_layers": 2,
    "dec_layers": 2,
    "hidden_size": 64,
    "word_vec_size": 64,
    "transformer_ff": 256,
    "heads": 4,
    "position_encoding": True,
    "batch_size": 64,
    "valid_batch_size": 64,
    "bucket_size": 4096,
    "num_workers": 0,
    "report_every": 100,
}
# Letters with another spelling, the longest first; some depend on the next letter.
SOUNDS = {
    "sch": "S", "tch": "C", "ch": "C", "sh": "S", "th": "T", "ph": "f", "ck": "k", "qu": "k w", "ng": "N", "ee": "i",
    "oo": "u", "ea": "i", "ou": "a u", "ai": "e i", "ay": "e i", "ce": "s e", "ci": "s i", "cy": "s i", "ge": "Z e",
    "gi": "Z i", "x": "k s", "y": "j", "c": "k", "w": "v",
}  # fmt: skip


def copied(chance: random.Random) -> tuple[list[str], list[str]]:
    letters = [chance.choice("abcdefghijklmnopqrst") for _ in range(chance.randint(4, 12))]
    return letters, letters


def in_order(chance: random.Random) -> tuple[list[str], list[str]]:
    letters = [chance.choice("abcdefghijklmnopqrst") for _ in range(chance.randint(4, 10))]
    return letters, sorted(letters)


def transliterated(word: str) -> list[str]:
    """A word in an invented phonetic spelling of English."""
    sounds: list[str] = []
    while word:
        length = next((n for n in (3, 2, 1) if word[:n] in SOUNDS), 1)
        sounds += SOUNDS.get(word[:length], word[:length]).split()
        word = word[length:]
    return [sound for place, sound in enumerate(sounds) if sounds[place - 1 : place] != [sound]]


def pairs(task: str, data: Path) -> Lines:
    """Distinct sources with their targets; the held-out ones come first."""
    chance = random.Random(1)
    count = HELD_OUT + TRAINED
    if task in ("copy", "sort"):
        make = copied if task == "copy" else in_order
        found = {" ".join(src): (src, tgt) for src, tgt in (make(chance) for _ in range(2 * count))}
        return list(found.values())[:count]
    english, german = ((data / f"{side}-train.txt").read_text("utf-8").splitlines() for side in ("src", "tgt"))
    if task == "transliterate":
        words = sorted({word for line in english for word in line.lower().split() if word.isascii() and word.isalpha()})
        words = [word for word in words if 3 <= len(word) <= 12]
        chance.shuffle(words)
        return [(list(word), transliterated(word)) for word in words[:count]]
    short = [
        (src, tgt) for src, tgt in zip(english, german, strict=True) if 0 < len(src) <= 100 and 0 < len(tgt) <= 100
    ]
    chance.shuffle(short)
    return _pieces(short)


def _pieces(short: list[tuple[str, str]]) -> Lines:
    """Pairs as pieces of a joint SentencePiece model."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for pair in short[HELD_OUT:] for text in pair),
        model_writer=model, vocab_size=1000, model_type="bpe", character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    cut = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [(cut.encode(src, out_type=str), cut.encode(tgt, out_type=str)) for src, tgt in short]


def write_task(folder: Path, task: str, model: str, data: Path) -> None:
    """Corpora and vocabularies. A language model reads `source = target` and must continue after the sign."""
    if (folder / "vocab.tgt").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = pairs(task, data)
    for part, chosen in (("valid", lines[:HELD_OUT]), ("train", lines[HELD_OUT:])):
        sides = {"src": [" ".join(src) for src, _ in chosen], "tgt": [" ".join(tgt) for _, tgt in chosen]}
        sides["text"] = [f"{src} = {tgt}" for src, tgt in zip(sides["src"], sides["tgt"], strict=True)]
        for side, texts in sides.items():
            (folder / f"{part}.{side}").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    for side in ("src", "tgt"):
        of = ("text",) if model == "lm" else (side,)
        tokens = {token for name in of for token in (folder / f"train.{name}").read_text("utf-8").split()}
        (folder / f"vocab.{side}").write_text("".join(f"{token}\n" for token in sorted(tokens)), encoding="utf-8")


def settings(data: Path, folder: Path, cell: Cell) -> dict[str, object]:
    """The YAML of both programs."""
    steps = cell["steps"]
    shared: dict[str, object] = {
        **SHAPE,
        **SCHEDULES[cell["schedule"]],
        "save_model": f"{folder}/model",
        "src_vocab": f"{data}/vocab.src",
        "seed": cell["seed"],
        "train_steps": steps,
        "valid_steps": steps // VALIDATIONS,
        "save_checkpoint_steps": steps,
    }
    if cell["model"] == "lm":
        corpora = {part: {"path_src": f"{data}/{part}.text", "transforms": []} for part in ("train", "valid")}
        kinds = {"model_task": "lm", "encoder_type": "transformer_lm", "decoder_type": "transformer_lm"}
        return {**shared, **kinds, "data": corpora, "share_vocab": True}
    corpora = {
        part: {"path_src": f"{data}/{part}.src", "path_tgt": f"{data}/{part}.tgt", "transforms": []}
        for part in ("train", "valid")
    }
    return {**shared, "data": corpora, "tgt_vocab": f"{data}/vocab.tgt"}


def run_cell(work: Path, cell: Cell, python: str, options: dict[str, object]) -> None:
    """Run one cell, and store its results."""
    data = work / "data" / f"{cell['model']}-{cell['task']}"
    folder = work / "cells" / "-".join(str(cell[key]) for key in cell)
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "train.yaml"
    config.write_text(yaml.safe_dump({**settings(data, folder, cell), **options}), encoding="utf-8")
    job = {**cell, "task": cell["model"], "data": str(data), "folder": str(folder), "config": str(config)}
    job["program"] = cell["program"] if cell["program"] == "opennmt" else "ours"
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, str(PROGRAMS), str(file)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{cell} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    with (work / "results.jsonl").open("a", encoding="utf-8") as out:
        out.write(json.dumps({**cell, **found}) + "\n")
    for checkpoint in folder.glob("model_step_*"):
        if checkpoint.is_file():
            checkpoint.unlink()


def results(work: Path) -> list[Cell]:
    """The stored results."""
    file = work / "results.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-work", type=Path, required=True, help="folder for corpora, runs and results")
    parser.add_argument("-data", type=Path, help="folder with src-train.txt and tgt-train.txt")
    parser.add_argument("-opennmt", help="Python interpreter with OpenNMT-py")
    parser.add_argument("-name", default="onmt_llm", help="name of our runs in the results")
    parser.add_argument("-options", default="{}", help="additional options of our YAML: {param_init_glorot: true}")
    parser.add_argument("-tasks", nargs="+", default=TASKS)
    parser.add_argument("-models", nargs="+", default=MODELS)
    parser.add_argument("-schedules", nargs="+", default=list(SCHEDULES))
    parser.add_argument("-seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("-steps", type=int, default=STEPS)
    parser.add_argument("-report", action="store_true", help="print the tables of the stored results")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    if arguments.report:
        print(report(results(work)))
        return
    keys = ("model", "task", "schedule", "seed", "program", "steps")
    names = ["opennmt"] if arguments.opennmt else []
    names += [arguments.name] if arguments.name else []
    done = {tuple(cell[key] for key in keys) for cell in results(work)}
    chosen = (arguments.models, arguments.tasks, arguments.schedules, arguments.seeds, names, [arguments.steps])
    for values in itertools.product(*chosen):
        cell = dict(zip(keys, values, strict=True))
        if values in done:
            continue
        write_task(work / "data" / f"{cell['model']}-{cell['task']}", cell["task"], cell["model"], arguments.data)
        theirs = cell["program"] == "opennmt"
        options = {} if theirs else yaml.safe_load(arguments.options)
        run_cell(work, cell, arguments.opennmt if theirs else sys.executable, options)


def report(cells: list[Cell]) -> str:
    """Medians over the seeds: exact answers, and perplexity during training; exact answers of each seed in brackets."""
    groups: dict[tuple[str, str, str], dict[str, list[Cell]]] = {}
    for cell in cells:
        key = (cell["model"], cell["task"], cell["schedule"])
        groups.setdefault(key, {}).setdefault(cell["program"], []).append(cell)
    lines = [
        "| model | task | schedule | program | parameters | exact of 300 | perplexity after 20%, 40% ... 100% |",
        "|---|---|---|---|--:|--:|---|",
    ]
    for key, programs in groups.items():
        for program, runs in programs.items():
            exact = [cell["exact"] for cell in runs]
            curves = [[ppl for ppl, _ in cell["curve"]] for cell in runs]
            course = ", ".join(f"{statistics.median(column):.2f}" for column in zip(*curves, strict=True))
            sizes = "/".join(sorted({f"{cell['parameters']:,}" for cell in runs}))
            answers = f"**{statistics.median(exact):g}** ({', '.join(map(str, exact))})"
            lines.append(f"| {' | '.join(key)} | {program} | {sizes} | {answers} | {course} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
