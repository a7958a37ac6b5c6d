"""Conversations with several training texts, through the whole pipeline; and what their templates see."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.corpus import Corpus
from onmt_llm.data.eval_prompts import read_prompts
from onmt_llm.data.example import IGNORED, Example
from onmt_llm.data.inspection.trace import collect
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.errors import DataError
from onmt_llm.text.templates.jinja.template import JinjaTemplate
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

SPECIALS = SpecialTokens(pad="<blank>")
ANSWERS = [f"a{n}" for n in range(60)]
WORDS = [*ANSWERS, *(f"q{n}" for n in range(60)), "user", "assistant", "old", "<|im_start|>", "<|im_end|>"]
VOCAB = Vocab(["<unk>", "<blank>", "<s>", "</s>", *WORDS], SPECIALS)
FORGETS = (
    "{% for m in messages %}<|im_start|> {{ m.role }} "
    "{{ 'old' if m.role == 'assistant' and not loop.last else m.content }} <|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
"""A template that shows only the last answer."""


def template(source: str = FORGETS) -> JinjaTemplate:
    return JinjaTemplate(source, specials=SPECIALS, control_tokens=["<|im_start|>", "<|im_end|>"])


def turns(first: int, rounds: int) -> list[dict[str, Any]]:
    return [
        {"role": role, "content": f"{role[0] if role[0] == 'a' else 'q'}{number}"}
        for number in range(first, first + rounds)
        for role in ("user", "assistant")
    ]


@pytest.fixture
def spec(write):
    """`spec(items, **options)`: a corpus of JSON objects for a model with a template that forgets."""

    def make(items: list[dict[str, Any]], *, source: str = FORGETS, batching: Any = None, **options: Any):
        path = write("c.jsonl", "".join(json.dumps(item) + "\n" for item in items))
        codec = make_codec("lm", VOCAB, template=template(source))
        more = {} if batching is None else {"batching": batching}
        return make_spec({"c": CorpusConfig(path_jsonl=path)}, codec, DataConfig(**options), **more)

    return make


@pytest.fixture
def rounds_of_three(spec):
    return spec([{"messages": turns(3 * number, 1 + number % 3)} for number in range(12)])


def shown(example: Example) -> str:
    return "".join(segment.text or "".join(segment.tokens or ()) for segment in example.src)


def test_every_answer_is_trained_once_in_its_context(rounds_of_three) -> None:
    corpus = Corpus("c", rounds_of_three)
    seen, counts = [], CorpusCounts()
    for record in iter(corpus.reader.read, None):
        for example in corpus.examples([record], counts):
            encoded = corpus.encode(example, counts)
            labels = [VOCAB[id_] for id_ in encoded.labels if id_ != IGNORED]
            seen.append(labels[0])
            assert labels[1] == "<|im_end|>" and len(labels) == 2
            assert example.part == sum(token == "old" for token in (VOCAB[id_] for id_ in encoded.tgt))
    assert seen == [f"a{3 * n + k}" for n in range(12) for k in range(1 + n % 3)]
    assert (counts.read, counts.made, counts.kept) == (12, 12, 24)


@pytest.mark.parametrize("packing", ["off", "pack"])
def test_a_run_is_resumed_exactly(rounds_of_three, packing: str) -> None:
    settings = {"batch_size": 3, "bucket_size": 4, "packing": packing, "packing_length": 40, "num_workers": 0}
    batching = rounds_of_three.batching.model_copy(update=settings)
    own = type(rounds_of_three)(
        rounds_of_three.corpora, rounds_of_three.data, rounds_of_three.codec, seed=3, batching=batching
    )

    def take(pipeline: Pipeline, number: int) -> list[Any]:
        return [(batch.tgt_BT.tolist(), batch.labels_BT.tolist()) for batch in islice(iter(pipeline), number)]

    expected = take(Pipeline(own), 25)
    for stop in (1, 2, 3, 5, 8, 13):
        first, second = Pipeline(own), Pipeline(own)
        assert take(first, stop) == expected[:stop]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert take(second, 10) == expected[stop : stop + 10]


def test_samples_number_the_texts_and_prompts_ask_for_the_last_answer(spec, write) -> None:
    made = spec([{"messages": turns(0, 3)}, {"messages": turns(9, 1)}])
    traces = [trace for each in collect(made, number=9) for trace in each.found]
    assert [(trace.line, trace.part, trace.parts) for trace in traces] == [(1, 0, 3), (1, 1, 3), (1, 2, 3), (2, 0, 1)]
    prompts, _ = read_prompts(made)
    assert [prompt.reference for prompt in prompts] == ["a2", "a9"]


SEES = (
    "{{ tools[0].name if tools }}|{{ enable_thinking }}|{{ documents | length if documents }}|"
    "{{ level | default('-') }}"
    "{% for m in messages %}|{{ m.name }}{{ m.content if m.content is string else m.content | tojson }}"
    "{{ m.tool_calls[0].function.name if m.tool_calls }}{{ m.reasoning_content }}{% endfor %}"
)
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
ASKED = [{"role": "user", "content": "q1", "name": "Ann"}]


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"tools": [{"name": "f"}], "enable_thinking": False}, "f|False||-|Annq1|a1"),
        ({"tools": '[{"name": "f"}]', "id": 3, "source": "x"}, "f|||-|Annq1|a1"),
        ({"documents": [{"n": 1}, {"n": 2}], "chat_template_kwargs": {"level": "high"}}, "||2|high|Annq1|a1"),
        ({"level": "low", "chat_template_kwargs": {"level": "high"}}, "|||high|Annq1|a1"),
        ({"messages": [*ASKED, CALL]}, "|||-|Annq1|nullf"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "a1", "reasoning_content": "a2"}]}, "|||-|Annq1|a1a2"),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": [{"type": "text", "text": "a1"}]}]},
            '|||-|Annq1|[{"type": "text", "text": "a1"}]',
        ),
    ],
)
def test_what_a_template_sees(spec, tmp_path, item: dict[str, Any], text: str) -> None:
    whole = {"messages": [*ASKED, {"role": "assistant", "content": "a1"}], **item}
    made = spec([whole], source=SEES)
    corpus = Corpus("c", made)
    (example,) = corpus.raw(corpus.reader.read())
    assert shown(example) == text
    if any(isinstance(turn["content"], list) for turn in whole["messages"]):
        return  # a column has one type
    # the columns of other records, and the nulls of their keys, change nothing
    other = {**whole, "messages": [*ASKED, {"role": "assistant", "content": "a1", "weight": 1, "thinking": "a3"}]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([whole, other]), tmp_path / "c.parquet")
    table = replace(made, corpora={"c": CorpusConfig(path_table=str(tmp_path / "c.parquet"))})
    corpus = Corpus("c", table)
    (example,) = corpus.raw(corpus.reader.read())
    assert shown(example) == text


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"tools": {"name": "f"}}, "must have a list of objects as its 'tools', but has an object"),
        ({"tools": "f"}, "'tools', but has text that is not JSON"),
        ({"chat_template_kwargs": [1]}, "must have an object as its 'chat_template_kwargs', but has a list"),
        ({"chat_template_kwargs": {"level": "\ud800"}}, "Unicode text under 'level'"),
        (
            {"messages": [{"role": "user", "content": [1]}]},
            "text or objects as the parts of a content, but has a number",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "must have text under 'content', but has null"),
        ({"messages": [{"role": "robot", "content": "q1"}]}, "has 'robot'"),
        ({"messages": [{"role": "tool", "content": "q1"}]}, "does not fit the chat template: .*: only users"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(spec, item: dict[str, Any], problem: str) -> None:
    source = "{% if messages[0].role != 'user' %}{{ raise_exception('only users') }}{% endif %}{{ tools }}{{ level }}"
    corpus = Corpus("c", spec([{"messages": turns(0, 1), **item}], source=source))
    with pytest.raises(DataError, match=problem) as caught:
        corpus.examples([corpus.reader.read()], CorpusCounts())
    assert "c.jsonl:1 " in caught.value.message and len(caught.value.message.splitlines()) == 1


def test_a_preferred_answer_is_trained_alone(spec) -> None:
    item = {"prompt": turns(0, 3)[:5], "chosen": [{"role": "assistant", "content": "a7"}], "rejected": "a8"}
    made = spec([item], objective="dpo")
    corpus = Corpus("c", made)
    (example,) = corpus.examples([corpus.reader.read()], CorpusCounts())
    for each, answer in ((example, "a7"), (example.rejected, "a8")):
        trained = [token for s in each.src if s.train_on for token in s.tokens or ()]
        assert trained == [answer, "<|im_end|>"]
    two = {**item, "chosen": [*turns(7, 1)[1:], *turns(8, 1)]}
    corpus = Corpus("c", spec([two], objective="dpo"))
    with pytest.raises(DataError, match="has 2 turns of the assistant in one answer"):
        corpus.examples([corpus.reader.read()], CorpusCounts())
