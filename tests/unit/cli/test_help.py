"""`-help`: a first page that fits a screen, and all options, wrapped to the terminal's width."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module

import pytest

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.cli.main import main as umbrella
from onmt_llm.commands import COMMANDS, short_name
from onmt_llm.config.section import options_of, section_docs
from onmt_llm.errors import ConfigError

SCREEN = 50


def shown(command: str, *topics: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as done:
        load_job(command, ["-help", *topics])
    assert done.value.code == 0
    return capsys.readouterr().out


@pytest.fixture(params=["40", "80", "100", "300", None])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    if request.param is None:
        monkeypatch.delenv("COLUMNS", raising=False)  # no terminal here either
        return 80
    monkeypatch.setenv("COLUMNS", request.param)
    return int(request.param)


@pytest.mark.parametrize("command", JOBS)
def test_no_line_is_wider_than_the_terminal(command: str, columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    first = shown(command, capsys=capsys)
    job = JOBS[command]
    sections = section_docs(job.section, job.extra())
    text = first + shown(command, *sections, *options_of(job.section, job.extra()), "all", capsys=capsys)
    assert max(map(len, text.splitlines())) <= columns
    if columns >= 80:
        assert len(first.splitlines()) <= SCREEN
    assert len(re.split(r"\n(?! )", first)[0].splitlines()) <= 5, "the usage is short"


@pytest.mark.parametrize("command", JOBS)
def test_all_is_said_once_somewhere(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = JOBS[command]
    table, sections = options_of(job.section, job.extra()), section_docs(job.section, job.extra())
    first, everything = shown(command, capsys=capsys), shown(command, "all", capsys=capsys)
    pages = shown(command, *table, capsys=capsys).split("\n\n")
    for (name, option), page in zip(table.items(), pages, strict=True):
        assert len(re.findall(rf"^ *-{name}\b", everything, re.MULTILINE)) == 1
        assert page.startswith(f"-{name}") and option.doc in " ".join(page.split())
    assert all(re.search(rf"\b{section}\b", first) for section in sections)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_table_of_commands_names_options_that_there_are(command: str) -> None:
    own = {"onmt_llm_generate": "onmt_llm_translate"}.get(command, command)
    job, entry = JOBS[own], COMMANDS[command]
    known = options_of(job.section, job.extra()).keys() | {"config", "dry_run"}
    flags = [word for line, _ in entry.examples for word in line.split() if re.match("-[a-z]", word)]
    assert {*entry.options} <= known and {flag[1:] for flag in flags} <= known | job.short.keys()
    assert callable(import_module(f"onmt_llm.cli.{entry.module}").main)


def test_foreign_names_and_misspelled_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "-learning_rate" in shown("onmt_llm_train", "lr", capsys=capsys)
    assert "copy attention is retired" in shown("onmt_llm_train", "copy_attn", capsys=capsys)
    with pytest.raises(ConfigError, match="did you mean 'lora'"):
        load_job("onmt_llm_train", ["--help=lroa"])


@pytest.mark.parametrize("flag", ["-copy_atn", "-bridg"])
def test_no_option_is_suggested_that_does_nothing(flag: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_job("onmt_llm_train", [flag, "2"])
    assert "did you mean" not in str(caught.value)


def test_all_commands_under_one_name(capsys: pytest.CaptureFixture[str], columns: int) -> None:
    assert umbrella([]) == 0
    said = capsys.readouterr().out
    assert all(f"  {short_name(command)}  " in said for command in COMMANDS)
    assert max(map(len, said.splitlines())) <= columns
    for argv in (
        ["help", "train", "lora_rank"],
        ["train", "-help", "lora_rank"],
        ["onmt_llm_train", "-h", "lora_rank"],
    ):
        with pytest.raises(SystemExit):
            umbrella(argv)
        assert "-lora_rank" in capsys.readouterr().out
    assert umbrella(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert umbrella(["plot"]) == 2


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "onmt_llm", "release", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("release_model ")
