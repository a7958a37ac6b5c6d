"""docify, truncate, chunk: lines are joined, and long examples are cut."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.transforms.build import build_transforms, undo_all
from onmt_llm.data.transforms.mask import InsertMask, MaskConfig
from onmt_llm.data.transforms.transform import TransformContext
from onmt_llm.data.transforms.windows import rounds
from onmt_llm.errors import ConfigError
from onmt_llm.text.segment import Segment
from onmt_llm.text.templates.builtin import TEMPLATES, get_template
from onmt_llm.text.templates.message import Message, mark_rounds, with_rounds_of
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from tiny_codecs import make_context

PAIRS = make_context(task="seq2seq", training=True)
TEXTS = make_context(task="lm", training=True, bos="<s>", tokenizer=WhitespaceTokenizer())


def build(name: str, context: TransformContext = PAIRS, **own):
    return next(t for t in build_transforms([name], {}, CorpusConfig(options=own), context) if t.name == name)


def lines(*pairs: tuple[str, str], start: int = 1) -> list[Example]:
    return [
        Example([Segment(src)], [Segment(tgt)] if tgt else [], line=number)
        for number, (src, tgt) in enumerate(pairs, start)
    ]


def texts(examples: list[Example]) -> list[tuple[str | None, str | None]]:
    return [(example.src[0].text, example.tgt[0].text if example.tgt else None) for example in examples]


class TestDocify:
    def test_lines_up_to_the_context(self):
        transform = build("docify", max_context=2)
        examples = lines(*((f"a{i}", f"x{i}") for i in range(5)))
        assert texts(transform.batch(examples)) == [("a0\na1\na2", "x0\nx1\nx2"), ("a3\na4", "x3\nx4")]
        assert transform.dropped == {"merged": 3} and transform.made == 0

    def test_no_longer_than_the_limit_on_either_side(self):
        transform = build("docify", doc_length=4, max_context=9)
        joined = transform.batch(lines(("a b", "x"), ("c d", "x"), ("e", "x"), ("f", "x y z v w"), ("g", "x")))
        assert [src for src, _ in texts(joined)] == ["a b\nc d", "e", "f", "g"]

    def test_a_gap_in_the_lines_and_a_new_epoch_end_a_document(self):
        transform = build("docify", max_context=9)
        examples = [*lines(("a", ""), ("b", "")), *lines(("c", ""), start=4), *lines(("d", ""), ("e", ""))]
        assert [src for src, _ in texts(transform.batch(examples))] == ["a\nb", "c", "d\ne"]

    def test_without_context_lines_stay_alone(self):
        transform = build("docify", max_context=0)
        assert len(transform.batch(lines(("a", "x"), ("b", "y")))) == 2

    def test_behind_the_tokeniser_it_counts_and_joins_tokens(self, sp_model):
        context = make_context(task="seq2seq", tokenizer=SentencePieceTokenizer(sp_model))
        own = CorpusConfig(options={"max_context": 3, "doc_length": 20})
        transforms = build_transforms(["sentencepiece", "docify"], {}, own, context)
        examples = lines(("the cat", "sat"), ("on the mat", "sat"), ("name three tips and sleep well", "sat"))
        for transform in transforms:
            examples = transform.batch(examples)
        first = side_tokens(examples[0].src)
        assert len(first) <= 20 and first.count("<0x0A>") == 1
        assert undo_all(transforms, first).split("\n") == ["the cat", " on the mat"]

    def test_trained_and_untrained_lines_keep_their_marks(self):
        examples = lines(("a", "x"), ("b", "y"))
        examples[0].src[0].train_on = False
        (document,) = build("docify").batch(examples)
        assert [(segment.text, segment.train_on) for segment in document.src] == [("a", False), ("\nb", True)]

    @given(
        st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"), min_size=1), min_size=1, max_size=12),
        st.integers(0, 5),
        st.integers(1, 30),
    )
    def test_every_line_comes_back_in_order(self, written, max_context, doc_length):
        transform = build("docify", max_context=max_context, doc_length=doc_length)
        documents = transform.batch(lines(*((text, text) for text in written)))
        for side in (0, 1):
            assert [line for document in texts(documents) for line in document[side].split("\n")] == written
        assert len(written) == len(documents) + transform.dropped["merged"]


def numbers(count: int, *, first: int = 0, train_on: bool = True, starts_round: bool = False) -> Segment:
    return Segment(tokens=[str(first + n) for n in range(count)], train_on=train_on, starts_round=starts_round)


def conversation(*sizes: tuple[int, int]) -> Example:
    """Rounds of so many tokens of question and answer; all tokens are different."""
    segments: list[Segment] = []
    first = 0
    for question, answer in sizes:
        segments.append(numbers(question, first=first, train_on=False, starts_round=bool(segments)))
        segments.append(numbers(answer, first=first + question))
        first += question + answer
    return Example(segments)


def values(example: Example) -> list[int]:
    return [int(token) for token in side_tokens(example.src)]


class TestTruncate:
    @pytest.mark.parametrize(("keep", "kept", "closed"), [("head", range(8), True), ("tail", range(2, 10), False)])
    def test_head_and_tail_of_a_text(self, keep, kept, closed):
        transform = build("truncate", TEXTS, truncate_length=10, truncate_keep=keep)
        example = transform(Example([numbers(4, train_on=False)], [numbers(6, first=4)]))
        assert values(example) == list(kept) and example.closed == closed
        assert [segment.train_on for segment in example.src] == [False, True] and transform.truncated == 1

    def test_what_fits_is_left_alone(self):
        transform = build("truncate", TEXTS, truncate_length=10)
        example = transform(Example([numbers(4)], [numbers(4)]))
        assert len(example.tgt) == 1 and not example.closed and transform.truncated == 0

    def test_whole_rounds(self):
        transform = build("truncate", TEXTS, truncate_length=12, truncate_keep="turns")
        example = transform(conversation((3, 2), (2, 3), (1, 1)))
        assert values(example) == list(range(10)) and not example.closed
        assert transform(conversation((9, 2), (1, 1))) is None
        assert transform.dropped == {"round_too_long": 1} and transform.truncated == 1

    def test_both_sides_of_a_pair(self):
        transform = build("truncate", truncate_length=5, truncate_tgt_length=4)
        example = transform(Example([numbers(7)], [numbers(3)]))
        assert (values(example), side_tokens(example.tgt), example.closed) == (list(range(5)), ["0", "1"], True)

    def test_it_stands_behind_the_tokeniser(self):
        with pytest.raises(ConfigError, match="must come after the tokeniser"):
            build_transforms(["truncate", "onmt_tokenize"], {}, CorpusConfig(), PAIRS)


class TestChunk:
    def chunks(self, example: Example, length: int, overlap: int = 0) -> list[Example]:
        transform = build("chunk", TEXTS, chunk_length=length + 2, chunk_overlap=overlap)
        chunks = transform.batch([copy.deepcopy(example)])
        assert transform.made == len(chunks) - 1
        return chunks

    def test_windows_begin_with_a_round(self):
        chunks = self.chunks(conversation((3, 2), (2, 2), (4, 1), (1, 1)), 9)
        assert [values(chunk) for chunk in chunks] == [list(range(9)), list(range(9, 16))]
        assert [chunk.closed for chunk in chunks] == [True, False]

    def test_repeated_rounds_are_not_trained_again(self):
        chunks = self.chunks(conversation((1, 2), (1, 2), (1, 2)), 6, overlap=1)
        assert [values(chunk) for chunk in chunks] == [list(range(6)), list(range(3, 9))]
        assert [segment.train_on for segment in chunks[1].src] == [False, False, False, True]

    def test_windows_of_a_document_begin_with_a_line(self):
        document = Example([Segment(tokens=["a", "b", "｟newline｠", "c", "d", "e", "｟newline｠", "f", "g"])], line=3)
        assert [side_tokens(chunk.src) for chunk in self.chunks(document, 5)] == [
            ["a", "b", "｟newline｠"],
            ["c", "d", "e", "｟newline｠"],
            ["f", "g"],
        ]

    @given(
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
        st.integers(2, 20),
        st.integers(0, 3),
    )
    def test_every_token_is_trained_once_in_order(self, sizes, length, overlap):
        whole = conversation(*sizes)
        chunks = self.chunks(whole, length, overlap)
        trained = [int(t) for c in chunks for s in c.src if s.train_on for t in s.tokens or ()]
        assert trained == [int(t) for s in whole.src if s.train_on for t in s.tokens or ()]
        assert all(len(values(chunk)) <= length for chunk in chunks)
        assert sorted({value for chunk in chunks for value in values(chunk)}) == values(whole)

    def test_an_encoder_is_refused(self):
        with pytest.raises(ConfigError, match="must be used with a language model"):
            build("chunk")


def text_of(segments):
    return "".join(s.text or "".join(s.tokens or ()) for s in segments)


class TestRounds:
    @pytest.mark.parametrize("name", TEMPLATES)
    def test_of_a_rendered_conversation(self, name):
        chat = [Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2"), Message("assistant", "a2")]
        segments = get_template(name).render(chat, generation_prompt=False)
        mark_rounds(segments)
        first, second = map(text_of, rounds(segments))
        assert "q1" in first and "a1" in first and "q2" in second and "a2" in second

    @pytest.mark.parametrize("name", TEMPLATES)
    @pytest.mark.parametrize(
        "trained", [[True, False, True, False], [True] * 4, [False] * 4, [False, False, False, True]]
    )
    def test_whatever_is_trained(self, name, trained):
        chat = [Message("user", "q1"), Message("assistant", "a1"), Message("user", "q2"), Message("assistant", "a2")]
        template = get_template(name)
        answers = template.render(chat, generation_prompt=False)
        mark_rounds(answers)
        turns = [replace(turn, train=flag) for turn, flag in zip(chat, trained, strict=True)]
        plain = template.render(turns, generation_prompt=False)
        marked = with_rounds_of(plain, answers)
        assert list(map(text_of, rounds(marked))) == list(map(text_of, rounds(answers)))
        pieces = [[text_of([s]) for s in side if s.train_on] for side in (marked, plain)]
        assert "".join(pieces[0]) == "".join(pieces[1])

    def test_of_a_line_cut_at_headings(self):
        text = "Intro\n\n### Instruction:\nq1\n\n### Response:\na1\n\n### Instruction:\nq2\n\n### Response:\na2"
        example = InsertMask.build(MaskConfig(), CorpusConfig(), make_context())(Example([Segment(text)]))
        assert example is not None
        assert [len(unit) for unit in rounds(example.src)] == [2, 2]
