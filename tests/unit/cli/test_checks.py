"""Mistakes that can be found without torch are reported together, each with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onmt_llm.cli.build_vocab import main as build_vocab
from onmt_llm.cli.data import main as data
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.train import main as train
from onmt_llm.cli.translate import main as translate
from onmt_llm.commands import COMMANDS
from onmt_llm.config.checkpoint import CheckpointConfig, config_text
from onmt_llm.config.model import ModelConfig

SIX = """\
save_model: run/x
data:
  a: {path_src: nowhere.txt}
  b: {path_jsonl: b.jsonl, template: alpacca}
transforms: [tokenmask, sentencepiece]
src_subword_model: nowhere.model
lora_layers: [q_proj]
plugins: [no_such_plugin]
learning_rat: 1
optim: adamm
reference_model: no/checkpoint
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a b\n")
    Path("b.jsonl").write_text('{"text": "a"}\n')
    Path("vocab.txt").write_text("<unk>\n<blank>\n<s>\n</s>\na\nb\n")
    Path("base").mkdir()
    model = ModelConfig(hidden_size=64, heads=4, vocab_size=8, decoder_layers=2)
    Path("base/config.yaml").write_text(config_text(CheckpointConfig(model=model)))
    return tmp_path


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_mistakes_of_all_kinds_come_together_in_the_order_of_their_lines(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.yaml").write_text(SIX)
    assert train(["-config", "x.yaml", "-deepspeed", "true"]) == 4
    said = told(capsys)
    assert [int(line) for line in re.findall(r"x\.yaml:(\d+)  ", said)] == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    words = ["'nowhere.txt'", "'alpacca'", "'tokenmask'", "'nowhere.model'", "lora_layers", "no_such_plugin"]
    words += ["learning_rat", "adamm", "no/checkpoint", "-deepspeed"]
    assert said.startswith("error: 10 things are wrong") and all(word in said for word in words)


GOOD = "data: {a: {path_src: a.txt}}\nmodel_task: lm\nsrc_vocab: vocab.txt\n"
ALONE = {
    "no corpus": ("seed: 1\nsrc_vocab: vocab.txt\n", 2, "'data' must name at least one corpus"),
    "only validation": ("data: {valid: {path_src: a.txt}}\nsrc_vocab: vocab.txt\n", 2, "names only valid"),
    "no path": (GOOD.replace("path_src: a.txt", "weight: 2"), 2, "x.yaml:1  Corpus 'a' must have path_src"),
    "two sources": (GOOD.replace("a.txt", "a.txt, path_txt: a.txt"), 2, "x.yaml:1  Corpus 'a' must have path_src"),
    "no vocabulary": (GOOD.replace("src_vocab: vocab.txt\n", ""), 2, "src_vocab must name a vocabulary file"),
    "missing vocabulary": (GOOD.replace("vocab.txt", "nix.txt"), 3, "x.yaml:3  'src_vocab' must be a file"),
    "vocabulary that is a folder": (GOOD.replace("vocab.txt", "base"), 3, "is a folder"),
    "unknown transform": (GOOD + "transforms: [filtertolong]\n", 2, "x.yaml:4  'filtertolong' is not a known"),
    "of one corpus": (GOOD.replace("a.txt", "a.txt, transforms: [x]"), 2, "x.yaml:1  'x' is not a known transform"),
    "two tokenisers": (GOOD + "transforms: [bpe, sentencepiece]\n", 2, "x.yaml:4  `transforms` must list at most one"),
    "missing checkpoint": (GOOD + "train_from: nix\n", 4, "x.yaml:4  train_from: There is no checkpoint at nix"),
    "not a checkpoint": (GOOD + "train_from: a.txt\n", 4, "x.yaml:4  train_from: A checkpoint must be a directory"),
    "missing base of the run": (GOOD + "train_from: auto\ninit_from: nix\n", 4, "x.yaml:5  init_from: There is no"),
    "missing prior": (
        GOOD + "lm_prior_model: nix\nlm_prior_lambda: 0.5\n",
        4,
        "x.yaml:4  lm_prior_model: There is no checkpoint",
    ),
    "nothing to adapt": (GOOD + "lora_layers: [q_proj]\n", 2, "x.yaml:4  lora_layers"),
    "nothing to adapt yet": (GOOD + "lora_layers: [q_proj]\ntrain_from: auto\n", 2, "set init_from"),
    "nothing to expand": (GOOD + "expand_every: 2\n", 2, "x.yaml:4  expand_every"),
    "no vocabulary to change": (GOOD + "update_vocab: true\n", 2, "x.yaml:4  update_vocab"),
    "another architecture": (GOOD + "train_from: base\nhidden_size: 128\n", 2, "x.yaml:5  hidden_size must be 64"),
    "missing vectors": (GOOD + "both_embeddings: nix\n", 3, "x.yaml:4  'both_embeddings' must be a file"),
    "unknown metric": (GOOD + "valid_metrics: [BLUE]\n", 2, "'BLUE' is not a known metric"),
    "nothing to validate on": (GOOD + "valid_metrics: [BLEU]\n", 2, "x.yaml:4  valid_metrics"),
    "nothing to stop by": (GOOD + "early_stopping: 3\n", 2, "x.yaml:4  early_stopping"),
    "no reference": (GOOD + "objective: dpo\ntrain_from: base\n", 2, "x.yaml:4  objective"),
    "gradients needed": (GOOD + "optimizer_in_backward: true\n", 2, "x.yaml:4  optimizer_in_backward"),
    "missing features": (GOOD + "n_src_feats: 1\n", 3, "vocab.txt_feat0"),
}


@pytest.mark.parametrize("case", ALONE)
def test_each_mistake_is_found_alone(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, code, words = ALONE[case]
    Path("x.yaml").write_text(text)
    assert train(["-config", "x.yaml", "-dry_run"]) == code
    said = told(capsys)
    assert words in said and "things are wrong" not in said


@pytest.mark.parametrize(
    ("text", "unsaid"),
    [
        ("src_vocb: vocab.txt\ndata: {a: {path_src: a.txt}}\n", "must name a vocabulary"),
        ("encoder_type: brnn\ndata: {a: {path_src: a.txt, path_tgt: a.txt}}\n", "must name a vocabulary"),
        (GOOD + "plugins: [nix]\ntransforms: [my_own_transform]\n", "my_own_transform"),
        (GOOD + "plugins: [nix]\nown_option_of_that: 1\n", "own_option_of_that"),
        (GOOD + "train_form: base\nlora_layers: [q_proj]\n", "lora_layers"),
        (GOOD.replace("path_src", "path_scr"), "must have path_src"),
    ],
)
def test_what_only_follows_from_another_mistake_is_not_one(
    text: str, unsaid: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.yaml").write_text(text)
    assert train(["-config", "x.yaml"]) == 2
    said = told(capsys)
    assert unsaid not in said and "things are wrong" not in said


@pytest.mark.parametrize("more", ["lora_layers: [q_proj]\n", "objective: dpo\n"])
def test_a_run_that_is_there_already_has_a_base(more: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text(f"data: {{a: {{path_src: nix}}}}\nsave_model: run\ntrain_from: auto\n{more}")
    Path("base").rename("run_step_3")
    assert train(["-config", "x.yaml"]) == 3
    assert "things are wrong" not in told(capsys)


def test_the_other_commands_look_at_what_they_read_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text("data: {a: {path_src: nix}}\ntransforms: [sentencepeice]\nlearning_rate: -1\n")
    assert data(["report", "-config", "x.yaml"]) == 3
    assert told(capsys).startswith("error: 3 things are wrong")
    assert build_vocab(["-config", "x.yaml"]) == 3
    assert told(capsys).startswith("error: 2 things are wrong")
    argv = ["-model", "nix", "-src", "nix.txt", "-tgt", "nix.tgt", "-transforms", "bqe", "-template", "alpacca"]
    assert translate([*argv, "-beam_size", "0"]) == 4
    said = told(capsys)
    assert said.startswith("error: 6 things are wrong") and said.index("-model") < said.index("-beam_size")


TOOLS = {
    "translate": ("onmt_llm_translate", [], 2, ["'model' must be given", "'src' must be given"]),
    "eval": ("onmt_llm_eval", ["perplexity", "-model", "nix", "-tgt", "nix"], 4, ["-model ", "'src' must", "-tgt "]),
    "lora": ("onmt_llm_lora", ["-lora_weights", "nix"], 4, ["-lora_weights ", "'base_model' must", "'output' must"]),
    "lora out": ("onmt_llm_lora", ["-action", "export", "-base_model", "gpt2"], 2, ["'lora_weights' must", "'output'"]),
    "checkpoint": ("onmt_llm_checkpoint", ["average", "-models", "base", "nix", "mix"], 4, ["nix", "mix", "'output'"]),
    "convert": ("onmt_llm_convert", ["-model_dir", "nix", "-vocab_file", "nix"], 4, ["-model_dir ", "-vocab_file "]),
    "convert out": ("onmt_llm_convert", ["-to", "hf", "-model_dir", "a.txt"], 4, ["must be a directory", "'output'"]),
    "release": ("release_model", ["-model", "nix", "-verify_text", "nix"], 4, ["-model ", "-verify_text ", "'output'"]),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tools_do_so_too(tool: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, argv, code, words = TOOLS[tool]
    assert COMMANDS[name].call(argv) == code
    said = told(capsys)
    assert "things are wrong" in said and all(word in said for word in words)


def test_an_error_of_a_command_names_the_place_of_the_option_to_blame(folder: Path) -> None:
    Path("x.yaml").write_text(GOOD + "valid_batch_size: 4\nlora_layers: [q_proj]\ntrain_from: base\n")
    loaded = load_job("onmt_llm_train", ["-config", "x.yaml", "-train_steps", "3"])
    places = {
        "valid_batch_size must be": "x.yaml:4",
        "'train_steps' must be": "-train_steps",
        "lora_embedding and lora_layers must": "x.yaml:5",
        "src_vocab: the file": "x.yaml:3",
        "Corpus 'a' must": "x.yaml:1",
        "The transforms of corpus 'a' must": "x.yaml:1",
        "seed must be": "",
        "The loss must be finite": "",
    }
    assert {sentence: loaded.place_of(sentence) for sentence in places} == places


def test_print_config_looks_at_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.yaml").write_text("data: {a: {path_src: nix}}\nlora_layers: [q_proj]\n")
    assert train(["-config", "x.yaml", "-print_config"]) == 0
    assert "nix" in capsys.readouterr().out
