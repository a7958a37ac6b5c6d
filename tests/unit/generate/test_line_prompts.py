"""Input lines through the transforms of inference, and answers back to lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onmt_llm.config.checkpoint import SequenceTokens
from onmt_llm.config.section import Section
from onmt_llm.data.transforms.affix import PrefixConfig, SuffixConfig
from onmt_llm.data.transforms.build import inference_transforms
from onmt_llm.data.transforms.docify import DocifyConfig
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.generate.line_prompts import LinePrompts
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from tiny_codecs import make_context

TOKENIZER = WhitespaceTokenizer()


def ask(lines: list[str], names: list[str], sequences: SequenceTokens | None = None, **options: Section) -> LinePrompts:
    context = make_context(task="seq2seq", tokenizer=TOKENIZER)
    text, tokens = inference_transforms(names, options, context)
    codec = context.codec
    codec.sequences = sequences or codec.sequences
    return LinePrompts(lines, text=text, tokens=tokens, encode=codec.encode, codec=codec)


def answered(text: str) -> list[Hypothesis]:
    return [Hypothesis(text.split(), text, -1.0, "stop")]


def echo(prompts: list[list[str]], places: object = None) -> list[list[Hypothesis]]:
    return [answered(TOKENIZER.decode(prompt)) for prompt in prompts]


def texts(answers: list[list[Hypothesis]]) -> list[list[str]]:
    return [[hypothesis.text for hypothesis in line] for line in answers]


def test_without_transforms_a_line_is_a_prompt() -> None:
    questions = ask(["a b", "", "c"], ["sentencepiece", "filtertoolong", "uppercase"])
    assert questions.prompts == [["a", "b"], [], ["c"]]
    assert texts(questions.by_line(echo(questions.prompts), echo)) == [["a b"], [""], ["c"]]


def test_affixes_as_text_and_as_tokens() -> None:
    prefix, suffix = PrefixConfig(src_prefix="to de:", tgt_prefix="de:"), SuffixConfig(src_suffix="</s> eng")
    sequences = SequenceTokens(src_prefix=["<s>"], src_suffix=["."])
    questions = ask(["a b"], ["prefix", "sentencepiece", "suffix"], sequences, prefix=prefix, suffix=suffix)
    assert questions.prompts == [["<s>", "to", "de:", "a", "b", "</s>", "eng", "."]]
    assert texts(questions.by_line([answered("de: x y")], echo)) == [["x y"]]


@pytest.mark.parametrize("names", [["docify"], ["docify", "sentencepiece"], ["sentencepiece", "docify"]])
def test_lines_are_joined_and_answers_split(names: list[str]) -> None:
    questions = ask(["a", "b", "c", "", "d"], names, docify=DocifyConfig(max_context=1))
    assert questions.prompts == [["a", "｟newline｠", "b"], ["c"], [], ["d"]]
    assert texts(questions.by_line(echo(questions.prompts), echo)) == [["a"], ["b"], ["c"], [""], ["d"]]


def test_an_answer_with_another_number_of_lines_is_asked_for_again_line_by_line() -> None:
    questions = ask(["a", "b"], ["docify"])
    asked: list[list[str]] = []

    def again(prompts: list[list[str]], places: list[int]) -> list[list[Hypothesis]]:
        asked.extend(prompts)
        assert places == [0, 1]
        return [answered(f"new {prompt[0]}") for prompt in prompts]

    assert texts(questions.by_line([answered("only one line")], again)) == [["new a"], ["new b"]]
    assert asked == [["a"], ["b"]]


def test_every_hypothesis_of_several_is_split() -> None:
    questions = ask(["a", "b"], ["docify"])
    both = [*answered("x\ny"), *answered("u\nv")]
    assert texts(questions.by_line([both], echo)) == [["x", "u"], ["y", "v"]]


@given(st.lists(st.sampled_from(["", "a", "b c", "d e f"]), max_size=12), st.integers(0, 4), st.integers(1, 8))
def test_every_line_has_its_answer(lines: list[str], max_context: int, doc_length: int) -> None:
    questions = ask(lines, ["docify"], docify=DocifyConfig(max_context=max_context, doc_length=doc_length))
    assert texts(questions.by_line(echo(questions.prompts), echo)) == [[line] for line in lines]
