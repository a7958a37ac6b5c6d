"""Nine walks through the code, counted: what a reader who follows one piece of work has to open.

    python tools/walks.py [-repository OTHER]

Small models and corpora are made in a temporary folder, the commands run in this process, and every call of a function
of the package is recorded while the root function of a walk is active: the files and functions that are entered, how
often the first call of a function lies in another file than the previous one, and the greatest depth. Module bodies,
class bodies and comprehensions do not count. A reader who follows one piece of work steps over checks: the functions
whose names match `CHECKS` are counted, but what they call is not; `-checks` counts that too. `-repository` is another
checkout.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOTS = {
    "a1  YAML to a checked configuration": ("config/", "load"),
    "a2  what a run begins with (train_from)": ("training/", "open_start"),
    "a3  lora_rank to the layers that get it": ("training/", "resolve_layers"),
    "b1  Hugging Face LLaMA to a checkpoint": ("checkpoint/", "convert"),
    "b2  checkpoint to CTranslate2, int8": ("releasing/", "release"),
    "c1  chat message to its answer, torch": None,
    "c2  chat message to its answer, CTranslate2": None,
    "d1  the data of a run, opened": ("training/", "open_pipelines"),
    "d2  a JSON line to a batch": ("data/", "Pipeline.__iter__"),
}
"""Where each walk begins: a folder of the package and the qualified name of a function in it; None = at its call."""


CHECKS = re.compile(r"_?check(_|$)|(.+_)?(checks|problems)$|refuse_|obstacles$")
"""Names of checks: of options and paths before a job, of files against their manifest, of a model against a format."""


@dataclass
class Walk:
    """What a reader passes.

    Attributes:
        functions: (file, qualified name), in the order of their first call.
        depth: Greatest number of our frames at once.
    """

    functions: dict[tuple[str, str], None] = field(default_factory=dict)
    depth: int = 0

    def row(self) -> str:
        files = [file for file, _ in self.functions]
        changes = sum(a != b for a, b in itertools.pairwise(files))
        return f"{len(set(files))} | {len(files)} | {changes} | {self.depth}"


class Recorder:
    """Records calls of functions below `package` while the root is active, or all of them without a root.

    Args:
        package: Folder of the sources.
        root: Folder below it, and qualified name of the function.
        once: Record its first call, or the first value of a generator, only.
        checks: Follow checks too.
    """

    def __init__(self, package: Path, root: tuple[str, str] | None, *, once: bool, checks: bool) -> None:
        self.walk = Walk()
        self._package = f"{package}/"
        self._root = root
        self._active: FrameType | None = None
        self._stack: list[FrameType] = []
        self._importing = 0
        self._once, self._done = once, False
        self._follows_checks = checks
        self._skipped: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return") or self._done:
            return
        code = frame.f_code
        ours = code.co_filename.startswith(self._package)
        if code.co_name == "<module>":
            self._importing += 1 if event == "call" else -1
        if not ours or self._importing or code.co_name.startswith("<") or not code.co_flags & 2:
            return
        file = code.co_filename.removeprefix(self._package)
        name = getattr(code, "co_qualname", code.co_name)
        if self._skipped is not None:
            if event == "return" and frame is self._skipped:
                self._skipped = None
                self._stack.pop()
            return
        if event == "call":
            if self._root and not self._active and file.startswith(self._root[0]) and name == self._root[1]:
                self._active = frame
            if self._active or not self._root:
                self._stack.append(frame)
                self.walk.functions.setdefault((file, name))
                self.walk.depth = max(self.walk.depth, len(self._stack))
                if not self._follows_checks and CHECKS.match(code.co_name):
                    self._skipped = frame
        elif self._stack and self._stack[-1] is frame:
            self._stack.pop()
            if frame is self._active:
                self._active = None
                self._done = self._once

    @contextlib.contextmanager
    def recording(self) -> Iterator[Walk]:
        sys.setprofile(self)
        try:
            yield self.walk
        finally:
            sys.setprofile(None)


def make_inputs(folder: Path) -> None:
    """A LLaMA of one layer with a SentencePiece model, conversations, and a YAML that fine-tunes it with LoRA."""
    import sentencepiece
    from transformers import LlamaConfig, LlamaForCausalLM

    draw = random.Random(1)
    words = ["".join(draw.choice("abcdefgh") for _ in range(draw.randint(1, 6))) for _ in range(200)]
    texts = [" ".join(draw.choice(words) for _ in range(draw.randint(3, 12))) for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=300, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=pieces, **sizes)).save_pretrained(folder / "hf")
    (folder / "hf/tokenizer.model").write_bytes(model.getvalue())
    turns = [{"from": "human", "value": texts[0]}, {"from": "gpt", "value": texts[1]}]
    line = json.dumps({"conversations": turns}) + "\n"
    (folder / "chat.jsonl").write_text(line * 200, "utf-8")
    (folder / "train.yaml").write_text(
        f"""
data:
  chat: {{path_jsonl: {folder}/chat.jsonl, template: vicuna}}
transforms: [sentencepiece, filtertoolong]
train_from: {folder}/base
save_model: {folder}/run/m
lora_layers: [q_proj, v_proj]
lora_rank: 4
batch_size: 1
bucket_size: 1
num_workers: 0
train_steps: 1
learning_rate: 0.001
optim: adamw
""",
        "utf-8",
    )


def follow(package: Path, folder: Path, *, checks: bool) -> Iterator[tuple[str, Walk]]:
    """The walks, each in a call of its command."""
    from onmt_llm.cli import convert, release, train
    from onmt_llm.config.generate import GenerationConfig
    from onmt_llm.generate.open import open_engine
    from onmt_llm.generate.session import ChatSession

    def run(name: str, main: Any, *arguments: str, once: bool = False) -> tuple[str, Walk]:
        with Recorder(package, ROOTS[name], once=once, checks=checks).recording() as walk:
            code = main(list(arguments))
        if code:
            sys.exit(f"{name}: exit code {code}")
        return name, walk

    a1, a2, a3, b1, b2, c1, c2, d1, d2 = ROOTS
    base, ct2, config = str(folder / "base"), str(folder / "ct2"), str(folder / "train.yaml")
    yield run(b1, convert.main, "-model_dir", str(folder / "hf"), "-output", base, once=True)
    yield run(b2, release.main, "-model", base, "-output", ct2, "-quantization", "int8", "-verify", "off", once=True)
    for name in (a1, a2, a3, d1, d2):
        yield run(name, train.main, "-config", config, "-save_model", str(folder / name[:2] / "m"), once=True)
    for name, model in ((c1, base), (c2, ct2)):
        session = ChatSession(open_engine(model), GenerationConfig(max_length=4), template="vicuna")
        with Recorder(package, ROOTS[name], once=False, checks=checks).recording() as walk:
            list(session.reply("a bad hedge"))
        yield name, walk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-repository", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument(
        "-functions", action="store_true", help="print the functions too, in the order of their first call"
    )
    parser.add_argument("-checks", action="store_true", help="follow checks too")
    arguments = parser.parse_args()
    root = arguments.repository.resolve()
    sys.path.insert(0, str(root))
    with tempfile.TemporaryDirectory() as name:
        make_inputs(Path(name))
        walks = dict(follow(root / "onmt_llm", Path(name), checks=arguments.checks))
    print("| walk | files | functions | changes of file | depth |\n|---|--:|--:|--:|--:|")
    for name in sorted(walks):
        print(f"| {name[4:]} | {walks[name].row()} |")
        if arguments.functions:
            print(*(f"    {file} {function}" for file, function in walks[name].functions), sep="\n")


if __name__ == "__main__":
    main()
