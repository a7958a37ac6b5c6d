"""What is trained of a conversation: each answer once, in the context that transformers renders for it.

The templates have the ways in which published ones change what they have written when the conversation goes on.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.jinja.template import JinjaTemplate
from onmt_llm.text.templates.message import Message

CHATML = (
    "{%- for m in messages %}{%- set is_last = loop.index > LAST_QUESTION %}"
    "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}ANSWER{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nPROMPT{% endif %}"
)
LAST_QUESTION = "(messages | map(attribute='role') | list | string).split('user') | length * 2 - 3"


def chatml(answer: str, prompt: str = "") -> str:
    """A ChatML template with other answers and another prompt; `is_last`: an answer to the last question."""
    return CHATML.replace("ANSWER", answer).replace("PROMPT", prompt).replace("LAST_QUESTION", LAST_QUESTION)


SPOKEN = "{{ m.content.split('</think>')[-1] }}"
WITH_THOUGHTS = (
    "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' if m.reasoning_content else '' }}{{ m.content }}"
)
TEMPLATES = {
    "never changes": chatml("{{ m.content }}"),
    "drops the thoughts of earlier answers": chatml(
        f"{{% if is_last %}}{WITH_THOUGHTS}{{% else %}}{SPOKEN}{{% endif %}}"
    ),
    "adds empty thoughts to the last answer": chatml(
        f"{{% if is_last and '</think>' not in m.content %}}<think>\n\n</think>\n\n{{% endif %}}"
        f"{{% if is_last %}}{{{{ m.content }}}}{{% else %}}{SPOKEN}{{% endif %}}"
    ),
    "opens thoughts in the prompt and drops them": chatml(SPOKEN, "<think>\n"),
    "opens and closes thoughts in the prompt": chatml(SPOKEN, "<think>\n\n</think>\n\n"),
    "opens thoughts that the answer closes": chatml(
        "{% if is_last %}{{ '<think>' + m.reasoning_content if m.reasoning_content }}</think>{% endif %}" + SPOKEN,
        "<think>",
    ),
    "puts the system message into the last question": (
        "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages %}"
        "{% if m.role == 'user' %}[INST]{{ s + ' ' if loop.revindex <= 2 }}{{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
    ),
    "ends a whole conversation with another token": chatml("{{ m.content }}").replace(
        "{% if add_generation_prompt %}", "{% if not add_generation_prompt %}<|endoftext|>{% else %}"
    ),
    "ends the last answer with another token": (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
    ),
    "ends an answer with the next heading": (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "changes a question that is answered": chatml("{{ m.content }}").replace(
        "{% else %}{{ m.content }}", "{% else %}{{ 'Now: ' if loop.last }}{{ m.content }}"
    ),
    "ends a question in another way when it is answered": chatml("{{ m.content }}").replace(
        "<|im_end|>\n{% endfor %}", "{{ '\n' if not loop.last }}<|im_end|>\n{% endfor %}"
    ),
    "always asks for an answer": chatml("{{ m.content }}").replace("{% if add_generation_prompt %}", "{% if 1 %}"),
}
MARKUP = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|endoftext|>")
HEADINGS = ("<|user|>", "<|assistant|>", "<|system|>", "[INST]", "[/INST]")
EOS = {"puts": "</s>", "ends the last": "<|return|>", "ends an": "<|endoftext|>"}
THOUGHTS = {
    "none": ("", {}),
    "in content": ("<think>\nTT{n}\n</think>\n\n", {}),
    "apart": ("", {"reasoning_content": "TT{n}"}),
}


def conversation(thoughts: str, *, system: bool, rounds: int) -> list[dict[str, Any]]:
    before, extra = THOUGHTS[thoughts]
    chat: list[dict[str, Any]] = [{"role": "system", "content": "SS"}] if system else []
    for n in range(1, rounds + 1):
        own = {key: value.format(n=n) for key, value in extra.items()}
        chat += [
            {"role": "user", "content": f"QQ{n}"},
            {"role": "assistant", "content": f"{before.format(n=n)}AA{n}", **own},
        ]
    return chat


def message(turn: dict[str, Any], **more: Any) -> Message:
    extra = {key: value for key, value in turn.items() if key not in ("role", "content")}
    return Message(turn["role"], turn["content"], extra=extra, **more)


def open_template(name: str, source: str) -> JinjaTemplate:
    eos = next((token for start, token in EOS.items() if name.startswith(start)), "<|im_end|>")
    specials = SpecialTokens(bos=None, eos=eos, add_bos=False)
    return JinjaTemplate(source, specials=specials, control_tokens=(*MARKUP, *HEADINGS))


def theirs(source: str, chat: list[dict[str, Any]], *, prompt: bool, **variables: Any) -> str:
    texts, _ = render_jinja_template([chat], chat_template=source, add_generation_prompt=prompt, **variables)
    return str(texts[0])


def trained_runs(texts: list[list[Segment]]) -> list[tuple[str, str]]:
    """Every trained part of the texts, with the text before it."""
    runs: list[tuple[str, str]] = []
    for segments in texts:
        before, inside = "", False
        for segment in segments:
            shown = segment.text if segment.text is not None else "".join(segment.tokens or ())
            if segment.train_on and inside:
                runs[-1] = (runs[-1][0], runs[-1][1] + shown)
            elif segment.train_on:
                runs.append((before, shown))
            before, inside = before + shown, segment.train_on
    return runs


def has_place_for(name: str, thoughts: str) -> bool:
    """Whether thoughts in the content of an answer, or apart from it, can stand behind the prompt."""
    if thoughts == "apart":
        return name.startswith(("drops", "opens thoughts"))
    return thoughts == "in content" and not name.startswith("opens and closes")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("thoughts", THOUGHTS)
@pytest.mark.parametrize("system", [False, True])
def test_each_answer_is_trained_once_where_the_model_has_to_give_it(name: str, thoughts: str, system: bool) -> None:
    source, chat = TEMPLATES[name], conversation(thoughts, system=system, rounds=3)
    runs = trained_runs(open_template(name, source).training_texts([message(turn) for turn in chat]))
    answers = [place for place, turn in enumerate(chat) if turn["role"] == "assistant"]
    for number, (place, (context, answer)) in enumerate(zip(answers, runs, strict=True), start=1):
        assert context == theirs(source, chat[:place], prompt=True)
        spoken = re.fullmatch(r"(.*</think>)?\s*AA(\d)(<\S+>\s*<\|endoftext\|>|<\S+>|)", answer, re.DOTALL)
        assert spoken is not None and spoken[2] == str(number)
        assert spoken[3] or name == "ends an answer with the next heading"
        assert (f"TT{number}" in answer) == has_place_for(name, thoughts)
        assert (context + answer).count("<think>") == (context + answer).count("</think>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_in_the_same_text_share_it(name: str) -> None:
    chat = conversation("in content", system=True, rounds=3)
    texts = open_template(name, TEMPLATES[name]).training_texts([message(turn) for turn in chat])
    whole = theirs(TEMPLATES[name], chat, prompt=False)
    shown = ["".join(s.text or "".join(s.tokens or ()) for s in segments) for segments in texts]
    same = name.startswith(("never", "ends an", "ends a whole", "ends the", "always"))
    assert (shown == [whole]) == same or name.startswith(("ends a whole", "ends the"))


@pytest.mark.parametrize("trained", [{0}, {1}, {2}, {0, 2}, set()])
@pytest.mark.parametrize("name", TEMPLATES)
def test_only_marked_answers_are_trained(name: str, trained: set[int]) -> None:
    chat = conversation("none", system=False, rounds=3)
    messages = [message(turn, train=bool(n % 2) and n // 2 in trained) for n, turn in enumerate(chat)]
    runs = trained_runs(open_template(name, TEMPLATES[name]).training_texts(messages))
    assert re.findall(r"AA(\d)", "".join(answer for _, answer in runs)) == [str(n + 1) for n in sorted(trained)]


@pytest.mark.parametrize("question", ["a", "think", "assistant", "<think>", "?"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_question_may_be_a_word_of_the_heading_of_the_answer(name: str, question: str) -> None:
    source, chat = TEMPLATES[name], conversation("none", system=False, rounds=2)
    chat[0]["content"] = chat[2]["content"] = question
    runs = trained_runs(open_template(name, source).training_texts([message(turn) for turn in chat]))
    assert [context for context, _ in runs] == [theirs(source, chat[:place], prompt=True) for place in (1, 3)]
    assert all(f"AA{number}" in answer for number, (_, answer) in enumerate(runs, start=1))


def test_an_answer_that_the_template_does_not_write_is_not_trained() -> None:
    source = chatml("{{ m.content }}", prompt="<think>\n").replace(
        "{%- for m in messages %}", "{%- for m in messages if m.content %}"
    )
    chat = conversation("none", system=False, rounds=2)
    chat[1]["content"] = ""
    runs = trained_runs(open_template("", source).training_texts([message(turn) for turn in chat]))
    assert [re.findall(r"AA\d", answer) for _, answer in runs] == [["AA2"]]


@pytest.mark.parametrize(
    ("name", "stops", "next_turn"),
    [
        ("never changes", ("<|im_end|>",), ()),
        ("ends the last answer with another token", ("<|return|>",), ("<|end|>",)),
        ("ends an answer with the next heading", (), ("<|user|>",)),
        ("opens and closes thoughts in the prompt", ("<|im_end|>",), ()),
    ],
)
def test_tokens_that_end_an_answer(name: str, stops: tuple[str, ...], next_turn: tuple[str, ...]) -> None:
    template = open_template(name, TEMPLATES[name])
    assert (template.stop_tokens, template.next_turn_tokens) == (stops, next_turn)


def test_generation_blocks_agree() -> None:
    source = (
        CHATML.replace("LAST_QUESTION", "0")
        .replace("PROMPT", "")
        .replace("ANSWER{% else %}", "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}")
    )
    source = source.replace("{{ m.content }}{% endif %}<|im_end|>\n", "{{ m.content }}<|im_end|>\n{% endif %}")
    chat = conversation("in content", system=True, rounds=3)
    (whole,), (spans,) = render_jinja_template([chat], chat_template=source, return_assistant_tokens_mask=True)
    runs = trained_runs(open_template("", source).training_texts([message(turn) for turn in chat]))
    assert [(len(before), len(before) + len(answer)) for before, answer in runs] == [tuple(span) for span in spans]
    assert len(runs) == 3 and whole.startswith(runs[-1][0])


def test_texts_come_in_the_order_of_their_answers() -> None:
    source = CHATML.replace("LAST_QUESTION", "0").replace("PROMPT", "<think>\n").replace("ANSWER", "{{ m.content }}")
    chat = conversation("none", system=False, rounds=2)
    chat[1]["content"] = "<think>\nTT1\n</think>\n\nAA1"  # only this one stands behind its prompt in the whole text
    runs = trained_runs(open_template("", source).training_texts([message(turn) for turn in chat]))
    assert [answer for _, answer in runs] == ["TT1\n</think>\n\nAA1<|im_end|>", "\n</think>\n\nAA2<|im_end|>"]
