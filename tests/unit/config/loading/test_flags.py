"""The command line."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.cli.jobs import load_job
from onmt_llm.config.loading.flags import CommandLine, normalise, words_of
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import ConfigError


def train(*argv: str) -> Loaded[Any]:
    return load_job("onmt_llm_train", argv)


@pytest.mark.parametrize(
    "flag", [["-train_steps", "7"], ["--train_steps", "7"], ["--train-steps=7"], ["-train_steps=7"]]
)
def test_every_spelling_of_a_flag(flag: list[str]) -> None:
    assert train(*flag).job.run.train_steps == 7


@pytest.mark.parametrize("flag", ["-n_sampel", "-conf", "--lerning-rate=3"])
def test_an_unknown_flag_is_never_guessed(flag: str) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        train(flag, "3")


def test_lists_and_switches_on_the_command_line() -> None:
    job = train("-lora_layers", "q_proj", "v_proj", "-tensorboard", "-override_opts", "false", "-dropout", "0.1").job
    assert job.lora.lora_layers == ["q_proj", "v_proj"]
    assert (job.logging.tensorboard, job.start.override_opts, job.regularization.dropout) == (True, False, [0.1])


@pytest.mark.parametrize("words", [["q_proj,", "v_proj"], ["q_proj,v_proj"], ["[q_proj, v_proj]"]])
def test_names_may_be_separated_by_commas(words: list[str]) -> None:
    assert train("-lora_layers", *words).job.lora.lora_layers == ["q_proj", "v_proj"]
    assert train("-use_ckpting", "mha,ffn").job.performance.use_ckpting == ["mha", "ffn"]
    assert train("-default_specials", "<s>", ",").job.vocabulary.default_specials == ["<s>", ","]


def test_an_unknown_flag_is_dropped_with_its_values() -> None:
    words, problems = normalise(["-sed", "1", "-2", "-seed", "-3", "--", "x"][:5], {"seed"}, CommandLine("prog"))
    assert words == ["--seed", "\x00-3"]
    assert [problem.sentence for problem in problems] == ["'-sed' is not an option of prog: did you mean '-seed'?"]


def test_short_flags() -> None:
    assert normalise(["-m", "a", "-h"], {"model", "help"}, CommandLine("prog", short={"m": "model"}))[0] == [
        "--model",
        "a",
        "--help",
    ]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--", "x"], "Every argument of onmt_llm_train must belong to a flag"),
        (["--set", "seed"], "--set needs KEY=VALUE, but got 'seed'"),
        (["stray"], "onmt_llm_train: unrecognized arguments: stray"),
        (["-seed"], "expected 1 argument"),
        (["-transforms", "-seed", "1"], "'-transforms' must have a value, but has none"),
    ],
)
def test_a_command_line_that_cannot_be_split_is_one_error(argv: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(*argv)


def test_a_look_ahead_finds_the_words_of_one_flag() -> None:
    argv = ["-config", "a.yaml", "-seed", "-1", "--config=b.yaml", "-plugins", "x", "-", "-3"]
    assert words_of("config", argv) == ["a.yaml", "b.yaml"]
    assert words_of("plugins", argv) == ["x", "-", "-3"]
    assert words_of("dropout", argv) == []


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        train("-version")
    assert done.value.code == 0 and capsys.readouterr().out.startswith("onmt_llm_train ")


def test_text_that_looks_like_a_number_or_null() -> None:
    job = train("-save_model", "12", "-tgt_vocab", "null").job
    assert (job.run.save_model, job.vocabulary.tgt_vocab) == ("12", None)
