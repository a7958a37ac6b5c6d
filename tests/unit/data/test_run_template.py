"""Which chat template the checkpoints of a run name."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.parsing.parser import ExampleParser
from onmt_llm.data.readers import open_reader
from onmt_llm.data.run_template import run_template

TALK = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIR = {"instruction": "q", "output": "a"}
TEXT = {"text": "whole"}
TURNS_TO_RATE = {"prompt": TALK["messages"][:1], "chosen": TALK["messages"][1:], "rejected": TALK["messages"][1:]}
TEXTS_TO_RATE = {"prompt": "q", "chosen": "a", "rejected": "b"}


def template(
    tmp_path: Any, *corpora: tuple[Any, dict[str, Any]], own: str | None = None, run: str | None = None, **data: Any
) -> str | None:
    """The template of a run on corpora `a`, `b` ...: each has a record, or lines of text, and options."""
    configs = {}
    for name, (record, options) in zip("abcd", corpora, strict=False):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(record if isinstance(record, str) else json.dumps(record) + "\n")
        configs[name] = CorpusConfig(**{"path_src" if isinstance(record, str) else "path_jsonl": str(file)}, **options)
    return run_template(DataConfig(data=configs, template=run, **data), own=own, task="lm")


CHATML, ALPACA = {"template": "chatml"}, {"template": "alpaca"}


@pytest.mark.parametrize(
    ("corpora", "own", "stored"),
    [
        ([(TALK, CHATML)], None, "chatml"),
        ([(TALK, {})], None, "alpaca"),
        ([(TALK, {}), (TEXT, {}), ("a line\n", {})], None, "alpaca"),
        ([(PAIR, {})], None, None),
        ([(PAIR, ALPACA)], None, "alpaca"),
        ([("Below ...\n", ALPACA)], None, "alpaca"),
        ([(TEXT, {})], None, None),
        ([("not JSON, which a file of text need not be\n", {})], None, None),
        # corpora that disagree: those that name none decide, and else the heaviest
        ([(TALK, {}), (PAIR, {})], None, None),
        ([(TALK, CHATML), (PAIR, {"weight": 9})], None, None),
        ([(TALK, {"weight": 0.5}), (TALK, CHATML)], None, "alpaca"),
        ([(TALK, CHATML), (TALK, ALPACA)], None, "chatml"),
        ([(TALK, CHATML), (TALK, {**ALPACA, "weight": 2})], None, "alpaca"),
        # a model with a template keeps it, unless all name another
        ([(TALK, {})], "llama3", None),
        ([(TALK, CHATML), (TALK, {})], "llama3", None),
        ([(TALK, CHATML), (TEXT, {"weight": 9})], "llama3", "chatml"),
    ],
)
def test_the_template_is_that_of_the_corpora(tmp_path: Any, corpora: Any, own: str | None, stored: str | None) -> None:
    assert template(tmp_path, *corpora, own=own) == stored
    assert template(tmp_path, *corpora, own=own, run="llama2") == "llama2"


@pytest.mark.parametrize(("record", "stored"), [(TURNS_TO_RATE, "alpaca"), (TEXTS_TO_RATE, None)])
def test_rated_answers_are_turns_or_texts(tmp_path: Any, record: Any, stored: str | None) -> None:
    assert template(tmp_path, (record, {}), objective="dpo") == stored


def test_the_first_record_that_can_be_read_counts(tmp_path: Any) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text("\n{broken\n" + json.dumps(TALK) + "\n" + json.dumps(PAIR) + "\n")
    data = DataConfig(data={"c": CorpusConfig(path_jsonl=str(file))}, on_bad_line="skip")
    assert run_template(data, own=None, task="lm") == "alpaca"


def test_several_templates_are_logged(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        template(tmp_path, (TALK, CHATML), (TALK, ALPACA))
        template(tmp_path, (TALK, CHATML), (TALK, CHATML))
    assert len(caplog.records) == 1 and "a: chatml; b: alpaca" in caplog.text


def test_prompts_are_laid_out_alike_before_and_after_a_conversation(tmp_path: Any) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in (PAIR, TALK, PAIR)))
    corpus = CorpusConfig(path_jsonl=str(file))
    parser, reader = ExampleParser("c", corpus, DataConfig(), task="lm"), open_reader("c", corpus)
    before, _, after = (parser(record).examples[0] for record in iter(reader.read, None))
    assert [part.text for part in (*before.src, *before.tgt)] == [part.text for part in (*after.src, *after.tgt)]
