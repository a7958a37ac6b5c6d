"""Flip single random bytes of the files that commands read: is the damage noticed, harmless or silently wrong?

    python tests/system/byte_flips.py FOLDER -flips 1000 -seed 0

makes small models in FOLDER (kept for the next call), then for each flip copies one artefact, changes one byte of one
of its files to another value, and runs the commands that read it, each `main()` in a forked child. Prints a table:

noticed     exit code 2, 3 or 4 with one sentence (or, where a run falls back, a warning that says "damaged")
harmless    the outputs are those without damage, to the byte
silent      exit code 0 and other outputs
traceback   an error that nobody wrote a sentence for; also any other exit code
aborted     the process died of a signal
hanging     nothing for LIMIT seconds

`TARGETS` is the table of artefacts and of the commands that read them; a further one is one more entry.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import random
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TOYS = ROOT / "recipes/replicate_vicuna"
LIMIT = 120.0
OUTCOMES = ("noticed", "harmless", "silent", "traceback", "aborted", "hanging")
WORDS = [f"w{i}" for i in range(40)]


@dataclass(frozen=True)
class Use:
    """A command that reads an artefact.

    Attributes:
        module: Of `onmt_llm.cli`.
        arguments: `{}` is the damaged artefact.
        outputs: Files whose bytes count, as patterns below the folder that it runs in.
        falls_back: Damage may be reported, and a fallback used.
    """

    module: str
    arguments: str
    outputs: tuple[str, ...] = ("out*",)
    falls_back: bool = False


@dataclass(frozen=True)
class Target:
    """An artefact.

    Attributes:
        name: For the table.
        path: A directory below the folder; it is copied with the names that it has.
        damaged: Which of its files are damaged, as patterns.
        uses: The commands that read it.
    """

    name: str
    path: str
    uses: tuple[Use, ...]
    damaged: tuple[str, ...] = ("**/*",)


TRANSLATE = Use("translate", "-model {} -src ../questions.txt -output out.txt -max_length 12 -device cpu")
WEIGHTS = ("out*/**/*.safetensors", "out*/**/model.bin", "out*/vocab*")
TARGETS = [
    Target(
        "checkpoint, in shards",
        "toy",
        (
            TRANSLATE,
            Use("lora", "-base_model {} -lora_weights ../lora_step_2 -output out", WEIGHTS),
            Use("release", "-model {} -output out -verify off", WEIGHTS),
            Use("train", "-config ../lora.yaml -train_from {} -save_model out/m -train_steps 1", WEIGHTS),
            Use("checkpoint", "extract_embeddings -model {} -out_file out.txt"),
        ),
    ),
    Target(
        "adapter",
        "lora_step_2",
        (TRANSLATE, Use("lora", "-base_model ../toy -lora_weights {} -output out", WEIGHTS)),
        ("*",),
    ),
    Target("CTranslate2, decoder-only", "toy_ct2", (TRANSLATE,)),
    Target("CTranslate2, encoder-decoder", "pairs_ct2", (TRANSLATE,)),
    Target("plain release", "plain", (TRANSLATE, Use("release", "-model {} -output out -verify off", WEIGHTS))),
    Target(
        "training state",
        "pairs_step_2",
        (
            Use("train", "-config ../pairs.yaml -train_from {} -save_model out/m -train_steps 3", WEIGHTS),
            Use(
                "train",
                "-config ../pairs.yaml -train_from {} -save_model out/m -train_steps 3 -reset_optim all",
                WEIGHTS,
            ),
        ),
    ),
    Target(
        "training state, the run's own",
        "run",
        (
            Use(
                "train",
                "-config ../pairs.yaml -train_from auto -save_model {}/m -train_steps 5",
                ("*/m_step_5/*.safetensors",),
                True,
            ),
        ),
        ("m_step_4/**/*",),
    ),
    Target(
        "token shards",
        "packs",
        (
            Use("train", "-config ../packed.yaml -save_model out/m -train_steps 8 -save_checkpoint_steps 8", WEIGHTS),
            Use("data", "report -config ../packed.yaml -save_data out", ("out/report.json",)),
        ),
    ),
    Target(
        "line index",
        "index",
        (
            Use(
                "train",
                "-config ../pairs.yaml -shuffle global -index_cache {} -save_model out/m -train_steps 8 "
                "-save_checkpoint_steps 8",
                WEIGHTS,
                True,
            ),
        ),
    ),
]


def make_artefacts(folder: Path) -> None:
    """Everything that `TARGETS` names, and what their commands need beside it; what is there is kept."""
    preload()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "complete").exists():
        return
    _write_inputs(folder)
    _load(TOYS / "make_toy_llama.py").make_toy_llama(folder / "llama")
    steps = [
        ("convert", "-model_dir llama/7B -tokenizer_model llama/tokenizer.model -shard_size 200KB -output toy"),
        ("train", "-config lora.yaml -train_from toy -save_model lora -train_steps 2"),
        ("train", "-config pairs.yaml -save_model pairs -train_steps 2"),
        ("train", "-config pairs.yaml -save_model run/m -train_steps 4"),
        ("release", "-model toy -output toy_ct2 -quantization int8 -verify off"),
        ("release", "-model pairs_step_2 -output pairs_ct2 -verify off"),
        ("release", "-model toy -output plain -format safetensors"),
        ("data", "pack -config packed.yaml"),
        ("train", "-config pairs.yaml -shuffle global -index_cache index -save_model indexed -train_steps 2"),
    ]
    for module, arguments in steps:
        ended = run_in_child(folder, module, arguments.split())
        if ended.code != 0:
            raise SystemExit(f"onmt_llm.cli.{module} {arguments} failed:\n{ended.text}")
    (folder / "complete").touch()


def _write_inputs(folder: Path) -> None:
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=chance.randint(3, 9))) + "\n" for _ in range(60)]
    (folder / "pairs.txt").write_text("".join(lines))
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in WORDS))
    questions = ["w1 w2 w3 w4", "May I borrow books?", "w7 w8 w9 w30 w31 w32 w33"]
    (folder / "questions.txt").write_text("".join(f"{line}\n" for line in questions))
    shared = {"save_checkpoint_steps": 2, "seed": 3, "device": "cpu", "progress": "none", "save_async": False}
    lora = {
        "data": {
            "alpaca": {"path_src": str(TOYS / "toy/alpaca_toy.txt"), "transforms": ["sentencepiece", "filtertoolong"]}
        },
        "src_subword_model": "../toy/tokenizer.model",
        "tgt_subword_model": "../toy/tokenizer.model",
        "model_task": "lm",
        "lora_layers": ["linear_values", "linear_query"],
        "lora_rank": 4,
        "batch_size": 2,
    }
    pairs = {
        "data": {"pairs": {"path_src": str(folder / "pairs.txt"), "path_tgt": str(folder / "pairs.txt")}},
        "src_vocab": str(folder / "words.txt"),
        "share_vocab": True,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "hidden_size": 32,
        "heads": 2,
        "transformer_ff": 48,
        "batch_size": 8,
    }
    lora["src_subword_model"] = lora["tgt_subword_model"] = str(folder / "llama/tokenizer.model")
    (folder / "lora.yaml").write_text(yaml.safe_dump({**shared, **lora}))
    (folder / "pairs.yaml").write_text(yaml.safe_dump({**shared, **pairs}))
    packed = {"pairs": {**pairs["data"]["pairs"], "path_packed": "packs"}}
    (folder / "packed.yaml").write_text(yaml.safe_dump({**shared, **pairs, "data": packed}))


def _load(path: Path):  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative = a signal, None = it took too long), and what it said."""

    code: int | None
    text: str


def preload() -> None:
    """Import what commands import when they need it, so that not every child does."""
    for module in (
        "onmt_llm.checkpoint.merge",
        "onmt_llm.generate.torch.engine",
        "onmt_llm.generate.ct2.translator",
        "onmt_llm.training.train",
        "onmt_llm.releasing",
        "ctranslate2",
        "sentencepiece",
    ):
        importlib.import_module(module)


def run_in_child(folder: Path, module: str, arguments: Sequence[str]) -> Ended:
    """Run `onmt_llm.cli.<module>` in `folder`, in a forked child."""
    main = importlib.import_module(f"onmt_llm.cli.{module}").main
    log = folder / "log.txt"
    child = os.fork()
    if child == 0:
        os.setsid()
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # a test runner may have put others in their place
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        code = 1
        try:
            os.chdir(folder)
            code = main(list(arguments))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = _wait(child)
    return Ended(code, log.read_text(encoding="utf-8", errors="replace"))


def _wait(child: int) -> int | None:
    watched = os.pidfd_open(child)
    try:
        if not select.select([watched], [], [], LIMIT)[0]:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(watched)


def outputs(folder: Path, patterns: Sequence[str]) -> str:
    """A digest of the names and the content of what a command has written."""
    digest = hashlib.sha256()
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest() if files else "nothing"


def use(world: Path, target: Target, how: Use, flip: Callable[[Path], None] | None) -> tuple[Ended, str]:
    """Run one command on a fresh copy of an artefact, damaged by `flip`."""
    folder = world / "now"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    artefact = folder / target.path
    shutil.copytree(world / target.path, artefact)
    if flip is not None:
        flip(artefact)
    ended = run_in_child(folder, how.module, how.arguments.format(target.path).split())
    return ended, outputs(folder, how.outputs)


def judge(ended: Ended, found: str, expected: str, how: Use) -> str:
    """What a flip has done: one of `OUTCOMES`."""
    if ended.code is None:
        return "hanging"
    if ended.code < 0:
        return "aborted"
    if "Traceback (most recent call last)" in ended.text or ended.code not in (0, 2, 3, 4):
        return "traceback"
    if ended.code:
        return "noticed" if "error: " in ended.text else "traceback"
    if found == expected:
        return "noticed" if how.falls_back and "is damaged" in ended.text else "harmless"
    return "silent"


def flips(artefact: Path, patterns: Sequence[str], chance: random.Random) -> tuple[str, int, int]:
    """A file of the artefact, a place in it, and what is to be done to the byte there."""
    files = sorted({p for pattern in patterns for p in artefact.glob(pattern) if p.is_file() and p.stat().st_size})
    file = chance.choice(files)
    return str(file.relative_to(artefact)), chance.randrange(file.stat().st_size), chance.randrange(1, 256)


def change(artefact: Path, name: str, place: int, mask: int) -> None:
    """Change a byte; the file keeps its times, as it does when bits rot."""
    file = artefact / name
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[place] ^= mask
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def attack(
    world: Path, targets: Sequence[Target], number: int, seed: int, *, extra: str = "", each: bool = True
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Flip `number` bytes, spread evenly over `targets`.

    Args:
        world: Where the artefacts are.
        targets: Which of them.
        number: Flips in all.
        seed: Of what is flipped.
        extra: Further arguments of every command.
        each: Every command reads each damaged artefact; else one of them, in turn.

    Returns:
        How often each outcome was seen, by target; and what is to be looked at, a line each.
    """
    chance, counts, strange = random.Random(seed), {}, []
    for target in targets:
        uses = [Use(u.module, f"{u.arguments} {extra}".strip(), u.outputs, u.falls_back) for u in target.uses]
        expected = {}
        for how in uses:
            ended, expected[how] = use(world, target, how, None)
            if ended.code != 0 or expected[how] == "nothing":
                raise SystemExit(f"without damage, {how.module} {how.arguments} ended with {ended.code}:\n{ended.text}")
        counts[target.name] = Counter[str]()
        for count in range(number // len(targets)):
            name, place, mask = flips(world / target.path, target.damaged, chance)
            for how in uses if each else [uses[count % len(uses)]]:
                ended, found = use(world, target, how, lambda copy: change(copy, name, place, mask))  # noqa: B023
                outcome = judge(ended, found, expected[how], how)
                counts[target.name][outcome] += 1
                if outcome not in ("noticed", "harmless"):
                    last = ended.text.strip().splitlines()[-1:] or [""]
                    strange.append(f"{outcome}: {target.name} {name} @{place}^{mask:#x}, {how.module}: {last[0][:200]}")
    return counts, strange


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-flips", type=int, default=1000)
    parser.add_argument("-seed", type=int, default=0)
    parser.add_argument("-targets", default="", help="names, or parts of names, with commas")
    parser.add_argument("-extra", default="", help="further arguments of every command, e.g. '-ignore_damage true'")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    world = options.folder.resolve()
    make_artefacts(world)
    wanted = [part for part in options.targets.split(",") if part]
    targets = [target for target in TARGETS if not wanted or any(part in target.name for part in wanted)]
    began = time.perf_counter()
    counts, strange = attack(world, targets, options.flips, options.seed, extra=options.extra)
    print(f"| artefact | {' | '.join(OUTCOMES)} |\n|---|{'--:|' * len(OUTCOMES)}")
    for name, seen in counts.items():
        print(f"| {name} | {' | '.join(str(seen[outcome]) for outcome in OUTCOMES)} |")
    seconds, commands = time.perf_counter() - began, sum(map(Counter.total, counts.values()))
    print(f"{options.flips} flips, {commands} commands, {seconds:.0f} s")
    print(*strange, sep="\n")
    return 1 if strange else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        raise SystemExit(main())
