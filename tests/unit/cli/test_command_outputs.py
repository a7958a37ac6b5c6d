"""No command overwrites its own inputs, however the output path is spelled; walks over all commands."""

from __future__ import annotations

import importlib
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.cli import simple_inference
from onmt_llm.cli.jobs import JOBS
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, SpecialTokens
from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.text.vocab import Vocab

TINY = ModelConfig(decoder_layers=1, vocab_size=8, hidden_size=8, heads=2, ffn_size=8)


@dataclass(frozen=True)
class Case:
    """A command, its inputs, and the options that name its outputs.

    Attributes:
        job: Its name in `JOBS`.
        words: Arguments.
        outputs: Options that name files.
        folders: Options that name directories, which are replaced as a whole.
    """

    job: str
    words: str
    outputs: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


CASES = {
    "translate": Case("onmt_llm_translate", "-src text -tgt other -phrase_table table -model model", ("output",)),
    "translate-adapter": Case("onmt_llm_translate", "-src text -model adapter", ("output", "log_file")),
    "eval": Case("onmt_llm_eval", "perplexity -src text -tgt other -model model", ("output", "log_file")),
    "score": Case("onmt_llm_eval", "score -hyp text other -tgt table", ("output", "log_file")),
    "eval-run": Case("onmt_llm_eval_run", "-config corpus.yaml -train_from model", ("output", "log_file")),
    "convert": Case("onmt_llm_convert", "-model_dir model -vocab_file table -force", (), ("output",)),
    "convert-opennmt": Case("onmt_llm_convert", "-model_dir model -to opennmt -force", ("output",)),
    "convert-hf": Case("onmt_llm_convert", "-model_dir model.pt -to hf -force", (), ("output",)),
    "merge": Case("onmt_llm_lora", "-action merge -base_model model -lora_weights adapter -force", (), ("output",)),
    "import": Case("onmt_llm_lora", "-action import -base_model model -lora_weights adapter -force", (), ("output",)),
    "export": Case("onmt_llm_lora", "-action export -lora_weights adapter -force", (), ("output",)),
    "average": Case("onmt_llm_checkpoint", "average -models model adapter -force", (), ("output",)),
    "consolidate": Case("onmt_llm_checkpoint", "consolidate -model model -force", (), ("output",)),
    "hub": Case("onmt_llm_hub", "download -repo me/model -folder model -force", (), ("output",)),
    "extract": Case("onmt_llm_checkpoint", "extract_embeddings -model model", ("out_file",)),
    "release": Case("release_model", "-model model -verify_text text -force", (), ("output",)),
    "release-pytorch": Case("release_model", "-model model -format pytorch -verify_text text -force", ("output",)),
    "plot": Case("onmt_llm_plot", "-runs run.png", ("output",)),
    "vocab": Case("onmt_llm_build_vocab", "-config corpus.yaml -overwrite", ("src_vocab", "tgt_vocab", "log_file")),
    "train": Case("onmt_llm_train", "-config corpus.yaml -train_from model", ("metrics_file", "log_file")),
    "launch": Case("onmt_llm_launch", "torchrun -config corpus.yaml -train_from auto", ("output", "log_file")),
    "merge-shards": Case("onmt_llm_data", "merge -shards shards", (), ("output",)),
}  # fmt: skip
MODULES = {
    "onmt_llm_chat": None,  # writes nothing
    "onmt_llm_serve": None,  # adds lines to its logs, as they are wanted
    "simple_inference": None,  # see below
    "release_model": "release",
}
FILES = ("text", "other", "table", "run.png", "corpus.yaml", "corpus.txt")
FOLDERS = ("model", "adapter", "shards")


def command(job: str) -> Callable[[list[str]], int]:
    name = MODULES.get(job) or job.removeprefix("onmt_llm_")
    main: Callable[[list[str]], int] = importlib.import_module(f"onmt_llm.cli.{name}").main
    return main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All inputs, with links to them; the commands are started here."""
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).write_text("a b\n")
        os.link(tmp_path / name, tmp_path / f"hard.{name}")
    (tmp_path / "corpus.yaml").write_text("data: {c: {path_src: corpus.txt, path_tgt: other}}\n")
    config = CheckpointConfig(model=TINY)
    with CheckpointWriter(tmp_path / "model", config) as writer:
        for name, shape in parameter_shapes(TINY).items():
            writer.add(name, torch.zeros(shape))
        tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e"]
        Vocab(tokens, SpecialTokens()).write(writer.directory / "vocab.txt")
    spec = AdapterSpec(rank=1, alpha=1, layers=["q_proj"], base=str(tmp_path / "model"), base_fingerprint="")
    with CheckpointWriter(tmp_path / "adapter", config.model_copy(update={"adapter": spec})) as writer:
        writer.add("decoder.layers.0.self_attn.q_proj.lora_a", torch.zeros(1, 8))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/index.json").write_text("{}")
    for name in (*FILES, *FOLDERS):
        (tmp_path / f"link.{name}").symlink_to(name)
    return tmp_path


def inputs(case: Case) -> set[str]:
    """What a command reads, by its name in the folder."""
    words = {word.removesuffix(".pt") for word in case.words.split()}
    beside = {"corpus.yaml": ("corpus.txt", "other"), "adapter": ("model",)}
    return {each for word in words & {*FILES, *FOLDERS} for each in (word, *beside.get(word, ()))}


def ways_to_say(case: Case, folder: Path) -> Iterator[tuple[str, str]]:
    """Options and outputs by which a command would write over what it reads."""
    for name in sorted(inputs(case)):
        for option in case.outputs:
            if name in FILES:
                yield from ((option, path) for path in (name, f"link.{name}", f"hard.{name}"))
                yield option, str(folder / "shards" / ".." / name)
            else:
                yield from (
                    (option, f"{path}/{file}") for path in (name, f"link.{name}") for file in ("vocab.txt", "new")
                )
        if name in FOLDERS:
            yield from ((option, path) for option in case.folders for path in (name, f"./{name}/", f"link.{name}", "."))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_an_output_that_is_an_input_is_refused(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, before = CASES[name], content(folder)
    tried = list(ways_to_say(case, folder))
    assert len(tried) >= 3
    for option, path in tried:
        assert command(case.job)([*case.words.split(), f"-{option}", path]) == 2, path
        said = capsys.readouterr().err
        assert f"'{option}' must not replace an input" in said, (path, said)
        assert content(folder) == before


def test_every_command_is_walked_over() -> None:
    assert {case.job for case in CASES.values()} | {name for name, module in MODULES.items() if not module} == {*JOBS}


@pytest.mark.parametrize("name", CASES)
def test_a_place_where_nothing_can_be_written_is_told(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    for option in (*case.outputs, *case.folders):
        for path in ("text/x", "x" * 300, *(["."] if option in case.outputs else [])):
            if (option, path) == ("output", ".") and name == "convert-opennmt":
                continue  # writes ..pt
            assert command(case.job)([*case.words.split(), f"-{option}", path]) == 2, path
            said = capsys.readouterr().err
            assert f"'{option}' must be" in said and "Traceback" not in said, said
        (folder / "zero.yaml").write_text(f'{option}: "x\\0y"\n')
        action = case.words.split()[:1] if not case.words.startswith("-") else []
        words = case.words.split()[len(action) :]
        assert command(case.job)([*action, "-config", "zero.yaml", *words]) == 2
        assert f"'{option}' must not contain the character NUL" in capsys.readouterr().err


def test_two_outputs_are_two_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-src", "text", "-model", "model", "-output", "new", "-log_file", "./new"]
    assert command("onmt_llm_translate")(words) == 2
    assert "'output' and 'log_file' must be different paths" in capsys.readouterr().err


def test_answers_as_json_take_no_place_of_what_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "py.yaml").write_text("model: [model]\n")
    words = ["-inference_config_file", "py.yaml", "-input_file", "outputs_model_py.json", "-output_directory", "."]
    (folder / "outputs_model_py.json").write_text("a b\n")
    assert simple_inference.main(words) == 2
    assert "'output_directory' must not replace an input" in capsys.readouterr().err
    assert (folder / "outputs_model_py.json").read_text() == "a b\n"


def test_answers_go_to_devices_and_through_links(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-src", "text", "-model", "model", "-device", "cpu", "-max_length", "2", "-output"]
    assert command("onmt_llm_translate")([*words, "/dev/full"]) == 4
    assert "Writing /dev/full failed: No space left on device.\n" in capsys.readouterr().err
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    (folder / "answers").symlink_to("elsewhere.txt")
    assert command("onmt_llm_translate")([*words, "answers"]) == 0
    assert (folder / "answers").is_symlink() and len((folder / "elsewhere.txt").read_text().splitlines()) == 1
    assert command("onmt_llm_checkpoint")(["extract_vocabulary", "-model", "model", "-out_file", "/dev/full"]) == 4
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_standard_output_that_is_full() -> None:
    program = "import sys; from onmt_llm.cli.run import run; sys.exit(run(lambda words: print('x') or 0, []))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (4, "error: No space left on device.\n")


def test_the_log_makes_its_folder(folder: Path) -> None:
    words = ["-src", "text", "-model", "model", "-device", "cpu", "-max_length", "1", "-log_file", "new/run.log"]
    assert command("onmt_llm_translate")(words) == 0
    assert "written to pred.txt" in (folder / "new/run.log").read_text()
