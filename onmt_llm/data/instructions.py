"""Instruction corpora: Alpaca and ShareGPT JSON to lines in the Vicuna recipe's layout, and back.

A line is an example; its line breaks are `｟newline｠`. Both ways stream: one example at a time is in memory. What
cannot be said in the other form is left out, and counted by reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from onmt_llm.atomic import atomic_file
from onmt_llm.data.spec import ROLE_NAMES
from onmt_llm.errors import DataError
from onmt_llm.output_checks import place_problem, replaced_input
from onmt_llm.text.placeholders import MASK_BEFORE, from_line, to_line
from onmt_llm.text.templates.builtin import AlpacaTemplate
from onmt_llm.text.templates.message import Message

Form = Literal["lines", "alpaca", "sharegpt"]

_ROLES = {name: role for name, role in ROLE_NAMES.items() if role in ("system", "user", "assistant")} | dict.fromkeys(
    ("chatgpt", "bing", "bard"), "assistant"
)
_HEADINGS = ("### Instruction:", "### Response:")
_TURN = re.compile(r"\n\n### (Instruction|Response):\n")
_BETWEEN = re.compile(r"[\s,]*")
_CHUNK = 1 << 20


@dataclass
class ConversionReport:
    """Counts of the converted examples.

    Attributes:
        kept: Examples written.
        dropped: Examples left out, by reason.
        cut: Turns left out of examples that were kept, by reason.
    """

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{self.kept} examples written, {self.dropped.total()} left out"]
        lines += [f"  {count} left out: {reason}" for reason, count in self.dropped.most_common()]
        lines += [f"  {count} turns cut: {reason}" for reason, count in self.cut.most_common()]
        return "\n".join(lines)


class _Unfit(Exception):
    """An example that is left out; the message is the reason."""


def convert_file(source: str | Path, target: str | Path, *, to: Form) -> ConversionReport:
    """Convert a file; `target` appears when it is complete.

    Args:
        source: JSON list or one JSON object a line (to "lines"), or a corpus of lines (to "alpaca" and "sharegpt").
        target: File to write.
        to: "lines", or the form of the JSON list.

    Raises:
        DataError: A file cannot be read or written, or is not JSON.
    """
    report = ConversionReport()
    if problem := place_problem(str(target)):
        raise DataError(f"The output must be a file that can be written, but {problem}.")
    if replaced_input(target, [str(source)]):
        raise DataError(f"The output must not take the place of the input, but both are {source}.")
    try:
        with (
            open(source, encoding="utf-8-sig", newline="\n") as incoming,
            atomic_file(target) as place,
            open(place, "w", encoding="utf-8", newline="\n") as outgoing,
        ):
            if to == "lines":
                outgoing.writelines(f"{line}\n" for line in to_lines(read_json(incoming, str(source)), report))
            else:
                lines = (line.rstrip("\n").removesuffix("\r") for line in incoming)
                _write_list(to_examples(lines, report, form=to), outgoing)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source} must be UTF-8 text, but is not ({error}).") from error
    return report


def to_lines(examples: Iterable[Any], report: ConversionReport) -> Iterator[str]:
    """Convert examples of either form to corpus lines; fills `report`.

    An example is `{instruction, input, output}`, or `{conversations: [...]}` (or `messages`) with turns
    `{from, value}` or `{role, content}`.
    """
    layout = AlpacaTemplate()
    for example in examples:
        try:
            messages = _messages(example, report)
            line = to_line("".join(part.text or "" for part in layout.render(messages, generation_prompt=False)))
            line.encode("utf-8")
        except _Unfit as unfit:
            report.dropped[str(unfit)] += 1
        except UnicodeEncodeError:
            report.dropped["half a surrogate pair"] += 1
        else:
            report.kept += 1
            yield line


def to_examples(
    lines: Iterable[str], report: ConversionReport, *, form: Literal["alpaca", "sharegpt"]
) -> Iterator[dict[str, Any]]:
    """Convert corpus lines to examples of one form; fills `report`."""
    build = _alpaca if form == "alpaca" else _sharegpt
    for line in lines:
        try:
            example = build(_parse_line(line))
        except _Unfit as unfit:
            report.dropped[str(unfit)] += 1
        else:
            report.kept += 1
            yield example


def _parse_line(line: str) -> list[Message]:
    """Parse a corpus line as a conversation; the first message has the role "system" and contains the preamble."""
    text = from_line(line.replace(MASK_BEFORE, ""))
    preamble, *rest = _TURN.split(text)
    if not rest:
        raise _Unfit("no `### Instruction:`")
    messages = [Message("system", preamble)]
    for number, (heading, content) in enumerate(zip(rest[::2], rest[1::2], strict=True)):
        if heading != ("Response" if number % 2 else "Instruction"):
            raise _Unfit("instructions and responses do not alternate")
        messages.append(Message("assistant" if number % 2 else "user", content))
    if messages[-1].role == "user":
        raise _Unfit("the last instruction has no response")
    return messages


def read_json(stream: TextIO, name: str) -> Iterator[Any]:
    """Stream the items of a JSON list, or of concatenated JSON objects.

    Args:
        stream: The file.
        name: What it is called in messages.

    Raises:
        DataError: It is not JSON; the message says from which item on.
    """
    decoder = json.JSONDecoder()
    buffer = stream.read(_CHUNK)
    position = _skip(buffer, 0)
    is_list = buffer.startswith("[", position)
    position += is_list
    number = 0
    while True:
        position = _skip(buffer, position)
        if is_list and buffer.startswith("]", position):
            if (buffer[position + 1 :] + stream.read(_CHUNK)).strip():
                raise DataError(f"{name} must hold one JSON list, but has more content after it.")
            return
        try:
            item, position = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError) as error:
            more = stream.read(max(_CHUNK, len(buffer) - position)) if _may_be_cut(error, len(buffer)) else ""
            if more:
                buffer, position = buffer[position:] + more, 0
            elif position == len(buffer) and not is_list:
                return
            else:
                raise DataError(f"{name} must be JSON, but is not from item {number + 1} on: {error}.") from error
        else:
            number += 1
            yield item


def _skip(buffer: str, position: int) -> int:
    """Position of the next item, after white space and commas."""
    match = _BETWEEN.match(buffer, position)
    assert match is not None
    return match.end()


def _may_be_cut(error: Exception, length: int) -> bool:
    """Whether an item fails only because the buffer ends within it."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > length - 16


def _messages(example: Any, report: ConversionReport) -> list[Message]:
    if not isinstance(example, dict):
        raise _Unfit("not a JSON object")
    turns = next((example[key] for key in ("conversations", "messages") if key in example), None)
    if turns is not None:
        messages = _conversation(turns, report)
    elif "instruction" in example and "output" in example:
        messages = _instruction(example)
    else:
        raise _Unfit("neither `instruction` and `output` nor `conversations`")
    if any(heading in message.content for message in messages for heading in _HEADINGS):
        raise _Unfit("a text that holds a heading of the layout")
    for message in messages:
        if message.role != "system" and not message.content.strip():
            raise _Unfit("an empty question" if message.role == "user" else "an empty answer")
    return messages


def _instruction(example: Mapping[str, Any]) -> list[Message]:
    instruction, extra, output = (_text(example.get(key) or "") for key in ("instruction", "input", "output"))
    if extra.strip() and AlpacaTemplate.INPUT in instruction:
        raise _Unfit("a text that holds a heading of the layout")
    return [*AlpacaTemplate.question(instruction, extra), Message("assistant", output)]


def _conversation(turns: Any, report: ConversionReport) -> list[Message]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise _Unfit("turns that are not a list of objects")
    messages = [_turn(turn) for turn in turns]
    system = messages[:1] if messages and messages[0].role == "system" else []
    rounds = messages[len(system) :]
    # ShareGPT pages often begin in the middle of a conversation, and some end with a question.
    while rounds and rounds[0].role == "assistant":
        rounds = rounds[1:]
        report.cut["an answer before the first question"] += 1
    if rounds and rounds[-1].role == "user":
        rounds = rounds[:-1]
        report.cut["a last question without an answer"] += 1
    if not rounds:
        raise _Unfit("no question with an answer")
    if any(message.role != ("assistant" if n % 2 else "user") for n, message in enumerate(rounds)):
        raise _Unfit("turns that do not alternate")
    return system + rounds


def _turn(turn: Mapping[str, Any]) -> Message:
    role = turn.get("from", turn.get("role"))
    if role not in _ROLES:
        raise _Unfit(f"a turn of '{role}'")
    return Message(_ROLES[role], _text(turn.get("value", turn.get("content"))))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unfit("a text that is not a string")
    return value.replace("\r\n", "\n")


def _alpaca(messages: list[Message]) -> dict[str, Any]:
    system, *rounds = messages
    if len(rounds) > 2:
        raise _Unfit("more than one round")
    question, answer = (message.content for message in rounds)
    if system.content == AlpacaTemplate.PREAMBLE_WITH_INPUT and AlpacaTemplate.INPUT in question:
        instruction, _, extra = question.partition(AlpacaTemplate.INPUT)
        return {"instruction": instruction, "input": extra, "output": answer}
    if system.content != AlpacaTemplate.PREAMBLE:
        raise _Unfit("a system message of its own")
    return {"instruction": question, "input": "", "output": answer}


def _sharegpt(messages: list[Message]) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    said = messages[1:] if messages[0].content == AlpacaTemplate.PREAMBLE else messages
    return {"conversations": [{"from": names[message.role], "value": message.content} for message in said]}


def _write_list(examples: Iterable[Mapping[str, Any]], stream: TextIO) -> None:
    before = "[\n"
    for example in examples:
        stream.write(before + json.dumps(example, ensure_ascii=False))
        before = ",\n"
    stream.write("\n]\n" if before == ",\n" else "[]\n")
