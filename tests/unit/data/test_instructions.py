"""Converting instruction data: layouts, roles and refusals."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.data import instructions
from onmt_llm.data.instructions import ConversionReport, convert_file, read_json, to_examples, to_lines
from onmt_llm.errors import DataError

ALPACA = [
    {"instruction": "Give three tips.", "input": "", "output": "1. Eat.\n\n2. Sleep."},
    {"instruction": "Add.", "input": "2 and\n3", "output": "5"},
    {"instruction": "What is ｟newline｠?", "input": "", "output": "A ｟ and a ｠, \\n is none, ｟U+000A｠ neither"},
]
SHAREGPT = [
    {
        "conversations": [
            {"from": "human", "value": "One?"},
            {"from": "gpt", "value": "1\n"},
            {"from": "human", "value": "Two?"},
            {"from": "gpt", "value": "2"},
        ]
    },
    {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Why?"},
            {"from": "gpt", "value": "Because."},
        ]
    },
]


def lines_of(examples: list[Any]) -> tuple[list[str], ConversionReport]:
    report = ConversionReport()
    return list(to_lines(examples, report)), report


def test_lines_are_those_of_the_recipe() -> None:
    lines, _ = lines_of(ALPACA[:2] + SHAREGPT[:1])
    preamble = "Below is an instruction that describes a task"
    request = (
        "Write a response that appropriately completes the request.｟newline｠｟newline｠### Instruction:｟newline｠"
    )
    response = "｟newline｠｟newline｠### Response:｟newline｠"
    assert lines == [
        f"{preamble}. {request}Give three tips.{response}1. Eat.｟newline｠｟newline｠2. Sleep.",
        f"{preamble}, paired with an input that provides further context. {request}Add."
        f"｟newline｠｟newline｠### Input:｟newline｠2 and｟newline｠3{response}5",
        f"{preamble}. {request}One?{response}1｟newline｠"
        f"｟newline｠｟newline｠### Instruction:｟newline｠Two?{response}2",
    ]


@pytest.mark.parametrize(("form", "examples"), [("alpaca", ALPACA), ("sharegpt", SHAREGPT)])
def test_there_and_back(tmp_path: Path, form: instructions.Form, examples: list[Any]) -> None:
    (tmp_path / "in.json").write_text(json.dumps(examples, indent=2), encoding="utf-8")
    report = convert_file(tmp_path / "in.json", tmp_path / "lines.txt", to="lines")
    assert (report.kept, report.dropped.total()) == (len(examples), 0)
    assert len((tmp_path / "lines.txt").read_text(encoding="utf-8").splitlines()) == len(examples)
    convert_file(tmp_path / "lines.txt", tmp_path / "out.json", to=form)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == examples
    assert not list(tmp_path.glob("*.partial"))


def test_both_spellings_and_json_lines() -> None:
    spelled = {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1\n"}]}
    stream = io.StringIO(json.dumps(spelled) + "\n\n" + json.dumps(ALPACA[0]) + "\n")
    lines, report = lines_of(list(read_json(stream, "x")))
    assert report.kept == 2 and lines[0].endswith("One?｟newline｠｟newline｠### Response:｟newline｠1｟newline｠")


def test_what_is_left_out_is_counted() -> None:
    def chat(*turns: tuple[str, Any]) -> dict[str, Any]:
        return {"conversations": [{"from": role, "value": value} for role, value in turns]}

    lines, report = lines_of(
        [
            "text",
            {"prompt": "x"},
            {"instruction": "x", "output": " "},
            {"instruction": "x", "output": 5},
            {"instruction": "x", "output": "a\n### Response:\nb"},
            {"instruction": "x", "output": "\ud800"},
            chat(("human", "x"), ("tool", "y")),
            chat(("human", "x"), ("human", "y"), ("gpt", "z")),
            chat(("gpt", "x")),
            {"conversations": "x"},
            chat(("gpt", "Hi"), ("human", "x"), ("gpt", "y"), ("human", "z")),
        ]
    )
    assert report.kept == len(lines) == 1
    assert report.dropped == {
        "not a JSON object": 1,
        "neither `instruction` and `output` nor `conversations`": 1,
        "an empty answer": 1,
        "a text that is not a string": 1,
        "a text that holds a heading of the layout": 1,
        "half a surrogate pair": 1,
        "a turn of 'tool'": 1,
        "turns that do not alternate": 1,
        "no question with an answer": 1,
        "turns that are not a list of objects": 1,
    }
    assert report.cut == {"an answer before the first question": 2, "a last question without an answer": 1}
    assert "1 examples written, 10 left out" in str(report)


def test_lines_that_have_no_place_in_json_are_counted() -> None:
    lines, _ = lines_of(ALPACA[:1] + SHAREGPT)
    report = ConversionReport()
    assert list(to_examples([*lines, "plain text"], report, form="alpaca")) == ALPACA[:1]
    assert report.dropped == {"more than one round": 1, "a system message of its own": 1, "no `### Instruction:`": 1}


def test_json_is_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "_CHUNK", 7)
    text = json.dumps(ALPACA, ensure_ascii=False, indent=1)
    assert list(read_json(io.StringIO(text), "x")) == ALPACA
    stream = io.StringIO(text)
    next(read_json(stream, "x"))
    assert stream.tell() < len(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"b": ]', "from item 2 on"),
        ('[{"a": 1}', "from item 2 on"),
        ('[{"a": "unfinished', "from item 1 on"),
        ('[{"a": 1}] more', "has more content after it"),
        ('{"a": 1} nonsense', "from item 2 on"),
        ('[{"a": ' + "[" * 100_000, "from item 1 on"),
    ],
)
def test_broken_json_says_where(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read_json(io.StringIO(text), "x"))


def test_the_script(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "tools" / "convert_instructions.py"
    (tmp_path / "in.json").write_text(json.dumps(ALPACA), encoding="utf-8")
    command = [sys.executable, str(script), "-input", str(tmp_path / "in.json"), "-output", str(tmp_path / "out.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "3 examples written, 0 left out" in done.stderr
    missing = subprocess.run([*command[:3], "nowhere.json", *command[4:]], capture_output=True, text=True, check=False)
    assert missing.returncode == 3 and "nowhere.json cannot be read" in missing.stderr
