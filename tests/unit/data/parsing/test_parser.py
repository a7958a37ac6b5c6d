"""Records become examples; invalid ones are refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.example import Example
from onmt_llm.data.parsing.parser import ExampleParser
from onmt_llm.data.readers import open_reader
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.builtin import get_template


def parse(corpus: CorpusConfig, *, task="lm", template=None, **options) -> list[Example | str]:
    """The examples of all records, and the reasons for skipping some."""
    reader = open_reader("c", corpus)
    parser = ExampleParser("c", corpus, DataConfig(**options), task=task, template=template)
    results = [parser(record) for record in iter(reader.read, None)]
    return [each for examples, skipped in results for each in examples or [skipped]]


def sides(example: Example | str) -> list[tuple[str | None, bool]]:
    assert isinstance(example, Example)
    return [(segment.text, segment.train_on) for segment in [*example.src, *example.tgt]]


def test_placeholders_become_newlines_in_text_files_only(write):
    (line,) = parse(CorpusConfig(path_src=write("a", "one｟newline｠two\n")))
    assert sides(line) == [("one\ntwo", True)]
    (item,) = parse(CorpusConfig(path_jsonl=write("j", json.dumps({"text": "one｟newline｠two\n｟_mask_before_｠"}))))
    assert sides(item) == [("one｟newline｠two\n｟_mask_before_｠", True)]


def test_a_literal_mask_marker_parts_prompt_and_answer(write):
    corpus = CorpusConfig(path_src=write("a", "ask｟newline｠｟_mask_before_｠answer\nplain\n"))
    assert [sides(example) for example in parse(corpus, zero_out_prompt_loss=True)] == [
        [("ask\n", False), ("answer", True)],
        [("plain", True)],
    ]
    assert sides(parse(corpus)[0]) == [("ask\n", True), ("answer", True)]


def test_parallel_lines_and_empty_ones(write):
    path = write("s", "a\n \nc\n")
    corpus = CorpusConfig(path_src=path, path_tgt=write("t", "x\ny\nz\n"))
    first, empty, third = parse(corpus, task="seq2seq")
    assert first == Example([Segment("a")], [Segment("x")], "c", 1, Path(path))
    assert empty == "empty"
    assert isinstance(third, Example) and third.line == 3


@pytest.mark.parametrize("roles", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
@pytest.mark.parametrize("key", ["conversations", "messages", "turns"])
def test_conversations_in_both_spellings_go_through_the_template(write, roles, key):
    role, content, user, assistant = roles
    turns = [{role: user, content: "Hi\nyou"}, {role: assistant, content: "Hello"}]
    corpus = CorpusConfig(path_jsonl=write("j", json.dumps({key: turns})), messages_key="turns")
    (example,) = parse(corpus, template=get_template("chatml"))
    assert isinstance(example, Example) and [(s.text or s.tokens, s.train_on) for s in example.src] == [
        (["<|im_start|>"], False),
        ("user\nHi\nyou", False),
        (["<|im_end|>"], False),
        ("\n", False),
        (["<|im_start|>"], False),
        ("assistant\n", False),
        ("Hello", True),
        (["<|im_end|>"], True),
        ("\n", False),
    ]
    assert example.closed
    (everything,) = parse(corpus, zero_out_prompt_loss=False, template=get_template("chatml"))
    assert isinstance(everything, Example) and all(segment.train_on for segment in everything.src)


def test_prompts_and_answers_with_and_without_a_template(write):
    items = [{"prompt": "p", "answer": "a"}, {"instruction": "i", "input": "in", "output": "o"}]
    path = write("j", "\n".join(map(json.dumps, items)))
    pairs = parse(CorpusConfig(path_jsonl=path), zero_out_prompt_loss=True)
    assert [sides(pair) for pair in pairs] == [[("p", False), ("a", True)], [("i\n\nin", False), ("o", True)]]
    chats = parse(CorpusConfig(path_jsonl=path, template="alpaca"), zero_out_prompt_loss=True)
    assert [sides(chat)[-1] for chat in chats] == [("a", True), ("o", True)]
    assert "### Instruction:\np\n\n### Response:\n" in str(sides(chats[0])[0][0])


def said(example: Example | str) -> str:
    """Its text with the trained parts in brackets."""
    return "".join(f"[{text}]" if trained else text or "" for text, trained in sides(example)).replace("[None]", "")


def test_a_prompt_and_its_completion_may_be_turns(write):
    turns = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "2?"},
    ]
    items = [
        {"prompt": "p", "completion": "c"},
        {"prompt": turns, "completion": [{"role": "assistant", "content": "B"}]},
        {"prompt": turns, "completion": "B"},
    ]
    corpus = CorpusConfig(path_jsonl=write("j", "\n".join(map(json.dumps, items))), template="chatml")
    one, *others = (said(example) for example in parse(corpus))
    assert one.count("[") == 1 and "user\np" in one and "[c]" in one
    assert all("user\n1?" in text and "assistant\nA" in text and "[B]" in text for text in others)
    assert all("[A]" not in text for text in others)


@pytest.mark.parametrize("key", ["conversations", "prompt"])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_system_prompt_beside_the_turns_is_read_where_it_is_named(write, key, objective):
    asked, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    item = {"sys": "be kind", key: [asked, answer]} if key == "conversations" else {"sys": "be kind", key: [asked]}
    rest = {"chosen": [answer], "rejected": "b"} if objective == "dpo" else {"completion": "a"}
    item = {**item, **({key: [asked], **rest} if objective == "dpo" or key == "prompt" else {})}
    corpus = CorpusConfig(path_jsonl=write("j", json.dumps(item)), template="chatml", system_key="sys")
    example = parse(corpus, objective=objective)[0]
    assert said(example).startswith("system\nbe kind")
    doubled = {**item, key: [{"role": "system", "content": "s"}, *item[key]]}
    corpus = CorpusConfig(path_jsonl=write("d", json.dumps(doubled)), template="chatml", system_key="sys")
    with pytest.raises(DataError, match="d:1 has a system prompt under 'sys', and another among its turns"):
        parse(corpus, objective=objective)


@pytest.mark.parametrize(
    ("item", "left"),
    [
        ({"system": "s", "prompt": "p", "answer": "a"}, "'system'"),
        ({"instruction": "i", "output": "o", "history": [["q", "a"]]}, "'history'"),
        ({"instruction": "i", "output": "o", "text": "whole"}, "'instruction', 'output'"),
        (
            {"system": "s", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
            "'system'",
        ),
        ({"prompt": "p", "answer": "a", "system": None, "id": 3, "source": "x"}, None),
    ],
)
def test_parts_of_an_example_that_are_not_read_are_named(write, caplog, item, left):
    name = str(sorted(item))  # said once in a process
    corpus = CorpusConfig(path_jsonl=write("j", json.dumps(item)))
    parser = ExampleParser(name, corpus, DataConfig(), task="lm")
    parser(next(iter(open_reader(name, corpus).read, None)))
    assert [left in record.message for record in caplog.records] == ([True] if left else [])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'text': 1}", "is not JSON"),
        ("[1]", "must be one JSON object, but is a list"),
        ("[" * 100_000, "is nested too deeply|is not JSON"),
        ('{"text": 3}', "must have text under 'text', but has a number"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"txt": "x"}', "but has txt"),
        ('{"messages": "x"}', "list of turns"),
        ('{"messages": [{"role": "user"}]}', "'role' and 'content'"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "but has 'robot'"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]}', "chat template"),
    ],
)
def test_bad_json_is_refused_with_file_and_line(write, line, problem):
    corpus = CorpusConfig(path_jsonl=write("bad.jsonl", '{"text": "ok"}\n' + line))
    with pytest.raises(DataError, match=f"bad.jsonl:2 .*({problem})"):
        parse(corpus)


def test_a_bad_byte_is_refused_with_file_line_and_offset(write):
    corpus = CorpusConfig(path_txt=write("doc", b"a\n\nfine\r\nb\xe4d\n"))
    with pytest.raises(DataError, match=r"doc:4 holds the byte 0xe4 at offset 10"):
        parse(corpus)


def test_an_encoder_decoder_needs_targets(write):
    with pytest.raises(ConfigError, match="path_tgt"):
        parse(CorpusConfig(path_src=write("a", "x\n")), task="seq2seq")
    with pytest.raises(DataError, match=r"j:1 has 'text'"):
        parse(CorpusConfig(path_jsonl=write("j", '{"text": "x"}')), task="seq2seq")


def test_an_alpaca_input_has_its_own_place_in_the_layout(write):
    item = {"instruction": "Translate.", "input": "Hund", "output": "dog"}
    (example,) = parse(CorpusConfig(path_jsonl=write("j", json.dumps(item))), template=get_template("alpaca"))
    assert isinstance(example, Example) and not example.closed
    text = "".join(segment.text or "" for segment in example.src)
    assert "paired with an input" in text and text.endswith("### Input:\nHund\n\n### Response:\ndog")
