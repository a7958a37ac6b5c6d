"""Preference data: accepted JSON layouts, pairs that stay together, rows of a batch."""

from __future__ import annotations

import json

import pytest

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.example import Example
from onmt_llm.data.parsing.parser import ExampleParser
from onmt_llm.data.readers import open_reader
from onmt_llm.data.transforms.filters import FilterTooLongConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.templates.builtin import get_template


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def parse(write, item: object, template: str | None = "chatml") -> Example:
    corpus = CorpusConfig(path_jsonl=write("j", json.dumps(item)))
    own = None if template is None else get_template(template)
    (examples,) = (
        ExampleParser("c", corpus, DataConfig(objective="dpo"), task="lm", template=own)(record).examples
        for record in iter(open_reader("c", corpus).read, None)
    )
    (example,) = examples
    assert isinstance(example, Example)
    return example


def trained(example: Example | None) -> str:
    assert example is not None
    segments = [*example.src, *example.tgt]
    return "".join(s.text or "".join(s.tokens or ()) for s in segments if s.train_on)


TALK = [turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "More")]
PAIRS = {
    "texts": {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    "turns as a prompt": {"prompt": TALK, "chosen": [turn("assistant", "yes")], "rejected": [turn("assistant", "no")]},
    "a turn each": {"conversations": TALK, "chosen": turn("assistant", "yes"), "rejected": turn("assistant", "no")},
    "whole conversations": {
        "chosen": [*TALK, turn("assistant", "yes")],
        "rejected": [*TALK, turn("assistant", "no")],
    },
    "whole conversations beside the question": {
        "prompt": " Hi",
        "chosen": [TALK[0], turn("assistant", "yes")],
        "rejected": [TALK[0], turn("assistant", "no")],
    },
    "whole conversations beside the turns of the question": {
        "prompt": TALK,
        "chosen": [*TALK, turn("assistant", "yes")],
        "rejected": [*TALK, turn("assistant", "no")],
    },
    "instruction": {"instruction": "Hi", "input": "you", "chosen": "yes", "rejected": "no"},
}


@pytest.mark.parametrize("shape", list(PAIRS))
def test_a_question_with_two_answers(write, shape: str) -> None:
    better = parse(write, PAIRS[shape])
    assert (better.chosen, better.rejected.chosen) == (True, False)
    assert trained(better) == "yes<|im_end|>" and trained(better.rejected) == "no<|im_end|>"
    questions = [[s.text or s.tokens for s in each.src if not s.train_on] for each in (better, better.rejected)]
    assert questions[0] == questions[1] and sum("Hi" in part for part in questions[0]) == 1


@pytest.mark.parametrize(
    "item",
    [
        {"prompt": "Hi", "completion": "maybe", "label": False},
        {"messages": [*TALK, turn("assistant", "maybe")], "label": 0},
        {"prompt": TALK, "completion": [turn("assistant", "maybe")], "label": False},
    ],
)
def test_an_answer_that_is_good_or_bad(write, item: object) -> None:
    example = parse(write, item)
    assert example.chosen is False and example.rejected is None
    assert trained(example) == "maybe<|im_end|>"


def test_without_a_template_the_answer_is_the_target(write) -> None:
    example = parse(write, PAIRS["texts"], template=None)
    assert (example.src[0].text, example.tgt[0].text, example.rejected.tgt[0].text) == ("Hi", "yes", "no")


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (
            {"prompt": "a", "answer": "b"},
            "must have 'prompt' with 'chosen' and 'rejected', or .* but has answer, prompt",
        ),
        (
            {"prompt": "Hi", "chosen": TALK[2:], "rejected": TALK[2:]},
            "must have a turn of the assistant first in an answer, .* one of the user that is not in the prompt",
        ),
        ({"chosen": "a", "rejected": "b"}, "must have a prompt, or whole conversations"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "true or false as its 'label', but has text"),
        ({"prompt": "a", "chosen": 1, "rejected": "b"}, "must have a list of turns"),
    ],
)
def test_other_shapes_are_refused(write, item: object, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        parse(write, item)


def pairs(write, number: int = 12) -> str:
    lines = [{"prompt": "a b", "chosen": "c " * (1 + i % 3), "rejected": "d " * (1 + i % 5)} for i in range(number)]
    return write("pairs", "".join(f"{json.dumps(line)}\n" for line in lines))


def test_pairs_are_rows_of_one_batch_and_stay_together(write, make_pipeline) -> None:
    corpora = {"p": CorpusConfig(path_jsonl=pairs(write))}
    data = {"objective": "dpo", "transforms": ["filtertoolong"]}
    pipeline = make_pipeline(corpora, data, {"batch_size": 4, "bucket_size": 12})
    batch: Batch = next(iter(pipeline))
    assert batch.preference_B.tolist() == [1] * 4 + [0] * 4 and batch.num_examples == 4
    words = [[pipeline._spec.codec.vocab[i] for i in row if i >= 0] for row in batch.labels_BT.tolist()]
    assert {word for row in words[:4] for word in row} <= {"c", "</s>", "a", "b"} and "d" in words[4]
    counts = pipeline.counts["p"]
    assert (counts.read, counts.made, counts.kept) == (12, 12, 24)


def test_a_pair_that_loses_one_answer_is_left_out(write, make_pipeline) -> None:
    corpora = {"p": CorpusConfig(path_jsonl=pairs(write, 15))}
    data = {"objective": "orpo", "transforms": ["filtertoolong"]}
    options = {"filtertoolong": FilterTooLongConfig(src_seq_length=8)}
    pipeline = make_pipeline(corpora, data, {"batch_size": 15, "bucket_size": 15}, options=options)
    next(iter(pipeline))
    counts = pipeline.counts["p"]
    # three of fifteen worse answers have five words
    assert counts.dropped["other_answer_dropped"] == 3
    assert counts.kept == 24
    assert counts.read + counts.made == 30 == counts.kept + sum(counts.dropped.values())


def test_answers_to_other_questions_follow_those_of_kto(write, make_pipeline) -> None:
    lines = [{"prompt": "a", "completion": "c c", "label": True}, {"prompt": "b b", "completion": "d", "label": False}]
    corpora = {"p": CorpusConfig(path_jsonl=write("k", "".join(f"{json.dumps(line)}\n" for line in lines)))}
    pipeline = make_pipeline(corpora, {"objective": "kto"}, {"batch_size": 2, "bucket_size": 2})
    batch = next(iter(pipeline))
    vocab = pipeline._spec.codec.vocab
    rows = [" ".join(vocab[i] for i in row if vocab[i] != "<blank>") for row in batch.tgt_BT.tolist()]
    kinds = batch.preference_B.tolist()
    by_row = dict(zip(rows, kinds, strict=True))
    assert by_row == {"<s> a c c": 1, "<s> b b d": 0, "<s> a d": -1, "<s> b b c c": -1}
    labels = [[vocab[i] for i in row if i >= 0] for row in batch.labels_BT.tolist()]
    assert labels[rows.index("<s> b b c c")] == ["c", "c", "</s>"] and labels[rows.index("<s> a d")] == ["d", "</s>"]


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_all_rows_of_preferences_count_as_tokens_of_a_batch(write, make_pipeline, objective: str) -> None:
    line = {"prompt": "a b", "chosen": "c c", "rejected": "d d"}
    corpora = {"p": CorpusConfig(path_jsonl=write("p", 12 * f"{json.dumps(line)}\n"))}
    pipeline = make_pipeline(corpora, {"objective": objective}, {"batch_type": "tokens", "batch_size": 40})
    batch = next(iter(pipeline))
    assert batch.tgt_BT.numel() == 40


def test_an_answer_alone_has_no_other_prompt(write, make_pipeline) -> None:
    corpora = {"p": CorpusConfig(path_jsonl=pairs(write))}
    with pytest.raises(ConfigError, match="batch_size must be at least 2 with objective: kto"):
        make_pipeline(corpora, {"objective": "kto"}, {"batch_size": 1})


def test_packing_and_plain_text_are_refused(write, make_pipeline) -> None:
    corpora = {"p": CorpusConfig(path_jsonl=pairs(write))}
    with pytest.raises(ConfigError, match="packing must be off with objective: dpo"):
        make_pipeline(corpora, {"objective": "dpo"}, {"packing": "pack", "packing_length": 20})
    with pytest.raises(ConfigError, match="must hold JSON objects"):
        make_pipeline({"p": CorpusConfig(path_src=write("s", "a\n"))}, {"objective": "dpo"})
