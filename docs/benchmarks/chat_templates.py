"""Render and train conversations with llama.cpp's collection of published chat templates; compare with transformers.

    python docs/benchmarks/chat_templates.py FOLDER [-only NAME ...]

prints a table. FOLDER is the unpacked source distribution of llama-cpp-python: it contains the collection as
`vendor/llama.cpp/models/templates`, and four more templates in `llama_cpp/llama_chat_format.py`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import html
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.parsing.conversation import read_messages
from onmt_llm.data.spec import Keys
from onmt_llm.errors import DataError
from onmt_llm.log import logger
from onmt_llm.text.templates.jinja.sandbox import Sandbox, compile_template
from onmt_llm.text.templates.jinja.template import JinjaTemplate

Chat = list[dict[str, Any]]
Variables = dict[str, Any]

CONTROL = re.compile(
    r"<[|｜][^<>\s'\"{}%]+[|｜]>|<\w+_of_\w+>|<(?:\|turn|turn\|)>|</?s>|\[/?[A-Z_]{3,}\]|\[e~\[|\]~\w*\]|<SPECIAL_\d+>|<seed:\w+>|<sep>|</?assistant>"
)
"""How control tokens look in templates: their tokenisers are not here."""
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_turn>",
    "</s>",
)
BOS, EOS = "<s>", "</s>"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "A town."}},
    "required": ["city"],
}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": PARAMETERS}}]
NAMED_TOOLS = [
    {
        "name": "weather",
        "description": "Says it.",
        "parameter_definitions": {"city": {"type": "str", "description": "A town."}},
    }
]
DOCUMENTS = [{"title": "Rome", "text": "It is warm.", "doc_id": "1"}]
VARIABLES: list[Variables] = [
    *({}, {"tools": TOOLS}, {"documents": DOCUMENTS}, {"enable_thinking": True}, {"enable_thinking": False}),
    {"tools": TOOLS, "enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    {"tools": NAMED_TOOLS, "functions": "[]", "datetime": "now"},
]
KEYS = Keys.of("chats", CorpusConfig())
NAMED_IN_CALLS = {"name": ("forecast", "seasons"), "city": ("Oslo", "Bern")}
"""What the calls of a conversation name, and what they name in the one that it is compared with."""


def conversations() -> Iterator[Chat]:
    """One to three rounds, with and without a system message, and with thoughts in two places, or none; an answer
    without text; and tool calls in all the ways in which data write them.
    """
    for rounds, system, thoughts in product((1, 2, 3), (False, True), ("", "in content", "apart")):
        chat: Chat = [{"role": "system", "content": "SS0"}] if system else []
        for n in range(1, rounds + 1):
            answer: dict[str, Any] = {"role": "assistant", "content": f"AA{n}"}
            if thoughts == "apart":
                answer["reasoning_content"] = answer["thinking"] = f"TT{n}"
            elif thoughts:
                answer["content"] = f"<think>\nTT{n}\n</think>\n\nAA{n}"
            chat += [{"role": "user", "content": f"QQ{n}"}, answer]
        yield chat
    yield [{"role": "user", "content": "QQ1"}, {"role": "assistant", "content": ""}]
    for calls, content, as_text in product((1, 2), ("", None), (False, True)):
        yield with_calls(calls, content, as_text=as_text)


def with_calls(number: int, content: str | None, *, as_text: bool) -> Chat:
    """A question, an answer with so many calls of tools, their results, and a last answer."""
    ids = [f"abcdefgh{n}" for n in range(number)]
    arguments = {"city": NAMED_IN_CALLS["city"][0]}
    function = {"name": NAMED_IN_CALLS["name"][0], "arguments": json.dumps(arguments) if as_text else arguments}
    calls = [{"id": id_, "type": "function", "function": function} for id_ in ids]
    results = [
        {"role": "tool", "content": f"RR{n}", "name": function["name"], "tool_call_id": id_}
        for n, id_ in enumerate(ids)
    ]
    question = {"role": "user", "content": "QQ1"}
    answer = {"role": "assistant", "content": content, "tool_calls": calls}
    return [question, answer, *results, {"role": "assistant", "content": "AA2"}]


def with_other_calls(chat: Chat, what: str) -> Chat:
    """The same conversation, in which the calls name something else."""
    here, other = NAMED_IN_CALLS[what]
    changed: Chat = copy.deepcopy(chat)
    for turn in changed:
        if "tool_calls" in turn:
            turn["tool_calls"] = json.loads(json.dumps(turn["tool_calls"]).replace(here, other))
    return changed


@dataclass(frozen=True)
class Case:
    """A conversation for a template, with variables."""

    source: str
    chat: Chat
    variables: Variables

    def theirs(self, length: int, *, prompt: bool = False) -> str | None:
        """The text of transformers of the first messages; None if the template refuses or fails."""
        try:
            return self._rendered(length, prompt=prompt)
        except Exception:
            return None

    def failure(self, length: int, *, prompt: bool) -> str:
        """The kind of error of transformers."""
        try:
            return self._rendered(length, prompt=prompt) and ""
        except Exception as error:
            return type(error).__name__

    def _rendered(self, length: int, *, prompt: bool) -> str:
        tokens = {"bos_token": BOS, "eos_token": end_of(self.source)}
        own = {key: value for key, value in self.variables.items() if key not in ("tools", "documents")}
        texts, _ = render_jinja_template(
            [copy.deepcopy(self.chat[:length])],
            self.variables.get("tools"),
            self.variables.get("documents"),
            self.source,
            add_generation_prompt=prompt,
            **tokens,
            **own,
        )
        return str(texts[0])

    def ours(self, length: int, *, prompt: bool = False) -> str | None:
        tokens = {"bos_token": BOS, "eos_token": end_of(self.source)}
        given = {"tools": None, "documents": None, **tokens, **self.variables}
        chat = self.chat[:length]
        try:
            return compiled(self.source).render(
                {**given, "messages": chat, "add_generation_prompt": prompt}, characters=9999, messages=length
            )
        except Exception:
            return None

    def writes_nothing(self, place: int) -> bool:
        """Whether an answer without text leaves no more than its heading."""
        written, asked = self.theirs(place + 1) or "", self.theirs(place, prompt=True) or ""
        return not self.chat[place]["content"] and asked.rstrip().startswith(written.rstrip())

    def written_times(self, place: int, what: str) -> int:
        """How often transformers writes what the calls of a message name: other calls change the text so often.

        If it does so only when the conversation goes on, once, since results may name it again.
        """
        other = Case(self.source, with_other_calls(self.chat, what), self.variables)
        here, _ = NAMED_IN_CALLS[what]
        times, later = (
            (self.theirs(length) or "").count(here) - (other.theirs(length) or "").count(here)
            for length in (place + 1, len(self.chat))
        )
        return times or min(later, 1)


def end_of(source: str) -> str:
    return next((token for token in ENDS if token in source), EOS)


@lru_cache
def compiled(source: str) -> Sandbox:
    return compile_template(source, "the template")


@dataclass
class Row:
    """What was counted of a template."""

    renderings: Counter[str] = field(default_factory=Counter)
    trained: int = 0
    several: int = 0
    answers: int = 0
    in_prompt: int = 0
    calls: int = 0
    written_calls: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    def compare(self, case: Case, length: int, *, prompt: bool) -> None:
        """Count whether a text is that of transformers."""
        mine, theirs = case.ours(length, prompt=prompt), case.theirs(length, prompt=prompt)
        if mine == theirs:
            self.renderings["equal"] += 1
        elif theirs is None:
            self.renderings[f"{case.failure(length, prompt=prompt)} of transformers"] += 1
        elif mine == html.unescape(theirs):
            self.renderings["escaped"] += 1
        else:
            self.renderings["different"] += 1

    def train(self, case: Case, template: JinjaTemplate) -> None:
        """Count what is trained of a conversation."""
        try:
            texts = template.training_texts(read_messages(case.chat, KEYS), variables=case.variables)
        except DataError as error:
            self.wrong[f"refused: {error.message}"] += 1
            return
        self.trained += 1
        for place, turn in enumerate(case.chat):
            if "tool_calls" in turn:
                self.calls += 1
                self.written_calls += any(case.written_times(place, what) for what in NAMED_IN_CALLS)
        self.several += len(texts) > 1
        found = [run for segments in texts for run in runs(segments) if run[1].strip()]
        places = [
            place
            for place, turn in enumerate(case.chat)
            if turn["role"] == "assistant" and not case.writes_nothing(place)
        ]
        if len(found) != len(places):
            self.wrong[f"{len(found)} trained parts of {len(places)} answers"] += 1
            return
        for place, (context, answer) in zip(places, found, strict=True):
            self.answer(case, template, place, context, answer)

    def answer(self, case: Case, template: JinjaTemplate, place: int, context: str, answer: str) -> None:
        """Count an answer, and what is not as it must be in it."""
        turn, asked = case.chat[place], case.theirs(place, prompt=True) or ""
        written = case.theirs(place + 1) or ""
        whole = case.theirs(len(case.chat)) or ""
        self.answers += 1
        is_asked = context in (asked, html.unescape(asked))
        self.in_prompt += is_asked
        if re.findall("[AQRS][AQRS][0-9]", answer) != re.findall("AA[0-9]", turn["content"] or ""):
            self.wrong["the text of another message, or none, is trained"] += 1
        if not is_asked and not starts(written, context + answer) and not starts(whole, context + answer):
            self.wrong["trained in a context that transformers does not write"] += 1
        if "tool_calls" in turn:
            named = [
                (answer.count(here), case.written_times(place, what)) for what, (here, _) in NAMED_IN_CALLS.items()
            ]
            if any(trained < written_times for trained, written_times in named):
                self.wrong["a call that transformers writes is not trained"] += 1
        end = next((token for token in reversed(CONTROL.findall(answer)) if answer.rstrip().endswith(token)), "")
        self.ends[end] += 1
        if not end and CONTROL.match(written[len(context + answer) :]):
            self.wrong["the token that ends the answer is not trained"] += 1
        stops = (*template.stop_tokens, *template.next_turn_tokens, end_of(case.source))
        if end and "tool_calls" not in turn and end not in stops:
            self.wrong[f"{end}, which ends an answer, does not end generation"] += 1

    def cells(self) -> list[str]:
        rest = [f"{number} {what}" for what, number in self.renderings.items() if what != "equal"]
        calls = "not written" if self.calls and not self.written_calls else f"{self.written_calls} / {self.calls}"
        ends = " ".join(f"`{end}`" if end else "(text)" for end, _ in self.ends.most_common())
        return [
            "; ".join([f"{self.renderings['equal']} / {self.renderings.total()}", *rest]),
            str(self.trained),
            str(self.several),
            f"{self.in_prompt} / {self.answers}",
            calls if self.calls else "-",
            ends,
            "; ".join(f"{number} {what}"[:200] for what, number in self.wrong.items()) or "-",
        ]


HEAD = [
    *("template", "renderings equal", "conversations trained", "in several texts", "answers at the prompt"),
    *("calls written", "answers end with", "wrong"),
]


def starts(written: str, trained: str) -> bool:
    return written.startswith(trained) or html.unescape(written).startswith(trained)


def runs(segments: list[Any]) -> list[tuple[str, str]]:
    """Each trained part of a text, with the text before it."""
    found: list[tuple[str, str]] = []
    before, inside = "", False
    for segment in segments:
        shown = segment.text if segment.text is not None else "".join(segment.tokens or ())
        if segment.train_on:
            found.append((before, shown) if not inside else (found[-1][0], found.pop()[1] + shown))
        before, inside = before + shown, segment.train_on
    return found


def check(name: str, source: str) -> Row:
    """The row of a template."""
    specials = SpecialTokens(bos=BOS, eos=end_of(source), add_bos=False)
    shown = [Case(source, chat, {}) for chat in conversations()]
    texts = [source, *(case.theirs(len(case.chat)) or "" for case in shown)]  # some put their tokens together
    control_tokens = {token for text in texts for token in CONTROL.findall(text)}
    template = JinjaTemplate(source, name=name, specials=specials, control_tokens=control_tokens)
    row = Row()
    for chat, variables in product(conversations(), VARIABLES):
        case = Case(source, chat, variables)
        row.compare(case, len(chat), prompt=False)
        row.compare(case, len(chat) - 1, prompt=True)
        if case.theirs(len(chat)) is not None:  # else it is no conversation of this template
            row.train(case, template)
    return row


def templates(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and sources of the templates in the source distribution."""
    for file in sorted(folder.glob("vendor/llama.cpp/models/templates/*.jinja"), key=lambda file: file.name.lower()):
        yield file.stem, file.read_text(encoding="utf-8")
    program = ast.parse((folder / "llama_cpp" / "llama_chat_format.py").read_text(encoding="utf-8"))
    for statement in program.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id.endswith("_CHAT_TEMPLATE"):
            yield target.id, ast.literal_eval(statement.value)  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-only", nargs="*", help="names of templates")
    options = parser.parse_args()
    logger.setLevel(logging.ERROR)
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for name, source in templates(options.folder):
        if not options.only or name in options.only:
            print(f"| {' | '.join([name, *check(name, source).cells()])} |", flush=True)


if __name__ == "__main__":
    main()
