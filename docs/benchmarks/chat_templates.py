"""Render and train conversations with every chat template of a folder, and compare with transformers.

    python docs/benchmarks/chat_templates.py FOLDER

prints a table. llama.cpp's collection of published templates is `vendor/llama.cpp/models/templates` in the source
distribution of llama-cpp-python (`pip download --no-deps --no-binary llama-cpp-python llama-cpp-python`).
"""

from __future__ import annotations

import argparse
import copy
import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.errors import DataError
from onmt_llm.log import logger
from onmt_llm.text.templates.jinja.sandbox import Sandbox, compile_template
from onmt_llm.text.templates.jinja.template import JinjaTemplate
from onmt_llm.text.templates.message import Message

CONTROL = re.compile(
    r"<[|｜][^<>\s'\"{}%]+[|｜]>|<\w+_of_\w+>|<(?:\|turn|turn\|)>|</?s>|\[/?[A-Z_]{3,}\]|\[e~\[|\]~\w*\]"
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
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
DOCUMENTS = [{"title": "Rome", "text": "It is warm.", "doc_id": "1"}]
VARIABLES: list[dict[str, Any]] = [
    *({}, {"tools": TOOLS}, {"documents": DOCUMENTS}, {"enable_thinking": True}, {"enable_thinking": False}),
    {"tools": TOOLS, "enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    {"tools": NAMED_TOOLS, "functions": "[]", "datetime": "now"},
]
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "QQ1"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "20 degrees", "name": "weather", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "AA2"},
]


def conversations() -> Iterator[list[dict[str, Any]]]:
    """One to three rounds, with and without a system message, and with thoughts in two places, or none."""
    for rounds, system, thoughts in product((1, 2, 3), (False, True), ("", "in content", "apart")):
        chat: list[dict[str, Any]] = [{"role": "system", "content": "SS0"}] if system else []
        for n in range(1, rounds + 1):
            answer: dict[str, Any] = {"role": "assistant", "content": f"AA{n}"}
            if thoughts == "apart":
                answer["reasoning_content"] = answer["thinking"] = f"TT{n}"
            elif thoughts:
                answer["content"] = f"<think>\nTT{n}\n</think>\n\nAA{n}"
            chat += [{"role": "user", "content": f"QQ{n}"}, answer]
        yield chat
    yield CALLS


def theirs(source: str, chat: list[dict[str, Any]], variables: dict[str, Any], *, prompt: bool) -> str | None:
    """The text of transformers; None if the template refuses."""
    tokens = {"bos_token": BOS, "eos_token": end_of(source)}
    own = {key: value for key, value in variables.items() if key not in ("tools", "documents")}
    try:
        texts, _ = render_jinja_template(
            [copy.deepcopy(chat)],
            variables.get("tools"),
            variables.get("documents"),
            source,
            add_generation_prompt=prompt,
            **tokens,
            **own,
        )
    except Exception:
        return None
    return str(texts[0])


def end_of(source: str) -> str:
    return next((token for token in ENDS if token in source), EOS)


@lru_cache
def compiled(source: str) -> Sandbox:
    return compile_template(source, "the template")


def ours(source: str, chat: list[dict[str, Any]], variables: dict[str, Any], *, prompt: bool) -> str | None:
    given = {"tools": None, "documents": None, "bos_token": BOS, "eos_token": end_of(source), **variables}
    try:
        return compiled(source).render(
            {**given, "messages": chat, "add_generation_prompt": prompt}, characters=9999, messages=len(chat)
        )
    except Exception:
        return None


def runs(template: JinjaTemplate, chat: list[dict[str, Any]], variables: dict[str, Any]) -> list[tuple[str, str]]:
    """Each trained part, with the text before it."""
    messages = [
        Message(turn["role"], turn["content"], extra={k: v for k, v in turn.items() if k not in ("role", "content")})
        for turn in chat
    ]
    found: list[tuple[str, str]] = []
    for segments in template.training_texts(messages, variables=variables):
        before, inside = "", False
        for segment in segments:
            shown = segment.text if segment.text is not None else "".join(segment.tokens or ())
            if segment.train_on:
                found.append((before, shown) if not inside else (found[-1][0], found.pop()[1] + shown))
            before, inside = before + shown, segment.train_on
    return found


def wrong(source: str, chat: list[dict[str, Any]], variables: dict[str, Any], found: list[tuple[str, str]]) -> str:
    """What is not as it must be in the trained parts; empty if nothing."""
    places = [place for place, turn in enumerate(chat) if turn["role"] == "assistant"]
    if len(found) != len(places):
        return f"{len(found)} trained parts of {len(places)} answers"
    for place, (context, answer) in zip(places, found, strict=True):
        content = chat[place]["content"]
        said = re.findall("[AQS][AQS][0-9]", answer)
        if said != re.findall("AA[0-9]", content):
            return f"message {place} trains {said}"
        if not content and "Rome" not in answer:
            return f"message {place} does not train its call"
        asked = theirs(source, chat[:place], variables, prompt=True)
        written = theirs(source, chat[: place + 1], variables, prompt=False)
        if context != asked and not (written or "").startswith(context + answer):
            return f"message {place} is trained in another context"
    return ""


def check(file: Path) -> tuple[str, ...]:
    """The row of a template."""
    source = file.read_text(encoding="utf-8")
    specials = SpecialTokens(bos=BOS, eos=end_of(source), add_bos=False)
    template = JinjaTemplate(source, name=file.stem, specials=specials, control_tokens=set(CONTROL.findall(source)))
    same = different = trained = several = in_prompt = answers = 0
    problems: list[str] = []
    for chat, variables in product(conversations(), VARIABLES):
        for cut, prompt in ((chat, False), (chat[:-1], True)):
            equal = ours(source, cut, variables, prompt=prompt) == theirs(source, cut, variables, prompt=prompt)
            same, different = same + equal, different + (not equal)
        if theirs(source, chat, variables, prompt=False) is None:
            continue  # not a conversation of this template
        try:
            found = runs(template, chat, variables)
        except DataError as error:
            problems.append(f"refused: {error.message}")
            continue
        trained += 1
        several += not all(found[-1][0].startswith(before + answer) for before, answer in found[:-1])
        places = [place for place, turn in enumerate(chat) if turn["role"] == "assistant"]
        for place, (context, _) in zip(places, found, strict=False):
            in_prompt += context == theirs(source, chat[:place], variables, prompt=True)
            answers += 1
        problems += filter(None, [wrong(source, chat, variables, found)])
    note = "; ".join(dict.fromkeys(problems)) or "-"
    return file.stem, f"{same} / {same + different}", str(trained), str(several), f"{in_prompt} / {answers}", note[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    logger.setLevel(logging.ERROR)
    head = (
        "template",
        "renderings equal",
        "conversations trained",
        "in several texts",
        "answers at the prompt",
        "wrong",
    )
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for file in sorted(parser.parse_args().folder.glob("*.jinja")):
        print(f"| {' | '.join(check(file))} |", flush=True)


if __name__ == "__main__":
    main()
