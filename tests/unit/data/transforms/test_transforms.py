"""Transforms on examples: tokenisers, filters, affixes and masks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.affix import Prefix, PrefixConfig, Suffix, SuffixConfig
from onmt_llm.data.transforms.build import added_tokens, build_transforms, sections, undo_all
from onmt_llm.data.transforms.filters import FilterTooLongConfig
from onmt_llm.data.transforms.mask import InsertMask, MaskConfig
from onmt_llm.data.transforms.subword import SubwordConfig, tokenizer_specs
from onmt_llm.errors import ConfigError, DataError, UnsupportedError
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from tiny_codecs import make_context

NO_CORPUS = CorpusConfig()
NO_CONTEXT = make_context()
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def run(transforms, examples):
    for transform in transforms:
        examples = transform.batch(examples)
    return examples


def lm(*parts: str) -> Example:
    return Example([Segment(part) for part in parts])


def pair(src: str, tgt: str) -> Example:
    return Example([Segment(src)], [Segment(tgt)])


def tokens(side: list[Segment]) -> list[list[str] | None]:
    return [segment.tokens for segment in side]


class TestBuilding:
    def test_an_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(ConfigError) as caught:
            build_transforms(["sentencepeice"], {}, NO_CORPUS, make_context())
        assert "sentencepiece" in str(caught.value.hint)

    def test_two_tokenisers_or_a_late_mask_are_refused(self, sp_model):
        options = {"subword": SubwordConfig(src_subword_model=sp_model)}
        with pytest.raises(ConfigError, match="at most one tokeniser"):
            build_transforms(["sentencepiece", "bpe"], options, NO_CORPUS, make_context())
        with pytest.raises(ConfigError, match="must come before the tokeniser"):
            names = ["sentencepiece", "insert_mask_before_placeholder"]
            build_transforms(names, options, NO_CORPUS, make_context())

    def test_without_a_tokeniser_the_checkpoints_goes_before_what_counts_tokens(self, sp_model):
        context = make_context(tokenizer=SentencePieceTokenizer(sp_model))
        built = build_transforms(["prefix", "filtertoolong"], {}, NO_CORPUS, context)
        assert [transform.name for transform in built] == ["prefix", "tokenize", "filtertoolong"]

    def test_options_have_unique_names_and_need_no_torch(self):
        leaves = [leaf for section in sections().values() for leaf in section.model_fields]
        assert len(leaves) == len(set(leaves)) and {"src_seq_length", "response_patterns"} <= set(leaves)
        code = (
            "import sys, onmt_llm.data.pipeline, onmt_llm.data.inspection.samples, onmt_llm.data.transforms.build as t;"
            "t.sections();"
            "sys.exit(any(name in sys.modules for name in ('torch', 'sentencepiece', 'pyonmttok', 'tokenizers')))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestTokenize:
    def test_sentencepiece_in_batches_continues_segments_and_keeps_tokens(self, sp_model):
        options = {"subword": SubwordConfig(src_subword_model=sp_model)}
        transforms = build_transforms(["sentencepiece"], options, NO_CORPUS, make_context())
        plain, parts, seam = run(
            transforms,
            [
                lm("the cat\nsat"),
                Example([Segment("the cat\n", train_on=False), Segment("sat"), Segment(tokens=["</s>"])]),
                pair("the cat", "sat"),
            ],
        )
        (whole,) = tokens(plain.src)
        assert whole is not None and "<0x0A>" in whole and whole[0].startswith("▁")
        assert [token for segment in parts.src for token in segment.tokens or []] == [*whole, "</s>"]
        assert [segment.train_on for segment in parts.src] == [False, True, True]
        assert (seam.tgt[0].tokens or [""])[0].startswith("▁")
        assert undo_all(transforms, whole) == "the cat\nsat"

    def test_text_never_becomes_a_control_token(self, sp_model):
        options = {"subword": SubwordConfig(src_subword_model=sp_model)}
        context = make_context(control_tokens=frozenset({"</s>"}))
        for names in (["sentencepiece"], []):
            (example,) = run(build_transforms(names, options, NO_CORPUS, context), [lm("a </s> b")])
            assert "</s>" not in (example.src[0].tokens or [])

    def test_sampling_acts_in_training_and_repeats_after_reseed(self, sp_model):
        config = SubwordConfig(src_subword_model=sp_model, src_subword_nbest=-1, src_subword_alpha=0.1)

        def encode(training: bool) -> list[list[str] | None]:
            context = make_context(training=training)
            transforms = build_transforms(["sentencepiece"], {"subword": config}, NO_CORPUS, context)
            transforms[0].reseed(3)
            return [tokens(example.src)[0] for example in run(transforms, [lm("the cat sat on the mat")] * 1)] + [
                tokens(run(transforms, [lm("the cat sat on the mat")])[0].src)[0] for _ in range(8)
            ]

        drawn = encode(True)
        assert len({tuple(pieces or ()) for pieces in drawn}) > 1
        assert encode(True) == drawn
        assert len({tuple(pieces or ()) for pieces in encode(False)}) == 1

    def test_bpe_and_its_dropout(self, write):
        codes = write("codes", "#version: 0.2\nt h\nth e</w>\nc a\nca t</w>\n")
        config = SubwordConfig(src_subword_model=codes, src_subword_alpha=1.0)
        for training, expected in ((False, ["the", "cat"]), (True, ["t@@", "h@@", "e", "c@@", "a@@", "t"])):
            transforms = build_transforms(["bpe"], {"subword": config}, NO_CORPUS, make_context(training=training))
            assert run(transforms, [lm("the cat")])[0].src[0].tokens == expected
            assert undo_all(transforms, expected) == "the cat"

    def test_dropout_of_onmt_tokenize_repeats_after_reseed_whatever_was_drawn_before(self, write):
        codes = write("codes", "#version: 0.2\nt h\nth e</w>\nc a\nca t</w>\n")
        config = SubwordConfig(
            src_subword_model=codes,
            src_subword_type="bpe",
            src_subword_alpha=0.5,
            src_onmttok_kwargs="{'mode': 'space'}",
        )
        (transform,) = build_transforms(["onmt_tokenize"], {"subword": config}, NO_CORPUS, make_context(training=True))

        def encode(seed: int) -> list[list[str]]:
            transform.reseed(seed)
            examples = [lm("the cat the cat") for _ in range(9)]
            return [tokens(example.src)[0] or [] for example in transform.batch(examples)]

        drawn = encode(3)
        assert encode(4) != drawn == encode(3)
        assert len({tuple(pieces) for pieces in drawn}) > 1

    def test_onmt_tokenize_reads_its_arguments_as_a_literal(self):
        for text in (
            '{"mode": "aggressive", "joiner_annotate": true}',
            "{'mode': 'aggressive', 'joiner_annotate': True}",
        ):
            config = SubwordConfig(src_onmttok_kwargs=text, tgt_onmttok_kwargs=text)
            context = make_context(task="seq2seq")
            transforms = build_transforms(["onmt_tokenize"], {"subword": config}, NO_CORPUS, context)
            assert run(transforms, [pair("It's.", "Ja.")])[0].tgt[0].tokens == ["Ja", "￭."]
            assert undo_all(transforms, ["Ja", "￭."]) == "Ja."
        for text in ("__import__('os')", "[1]", "{'mode'"):
            with pytest.raises(ValidationError, match="must be a mapping"):
                SubwordConfig(src_onmttok_kwargs=text)

    def test_what_cannot_be_opened_is_refused_by_option(self, sp_model, write):
        other = write("codes", "#version: 0.2\nt h\n")

        def build(name, context=NO_CONTEXT, **options):
            build_transforms([name], {"subword": SubwordConfig(**options)}, NO_CORPUS, context)

        with pytest.raises(DataError, match=r"src_subword_model: .*must be a SentencePiece model"):
            build("sentencepiece", src_subword_model=other)
        with pytest.raises(ConfigError, match="needs a src_subword_model"):
            build("sentencepiece")
        with pytest.raises(ConfigError, match="finds one of kind 'sentencepiece'"):
            build("bpe", make_context(tokenizer=SentencePieceTokenizer(sp_model)))
        with pytest.raises(ConfigError, match="tgt_subword_model must be empty or equal"):
            build("sentencepiece", src_subword_model=sp_model, tgt_subword_model=other)
        with pytest.raises(ConfigError, match="src_subword_type must be given together"):
            build("onmt_tokenize", src_subword_model=sp_model)
        with pytest.raises(UnsupportedError, match="src_vocab_threshold"):
            build("sentencepiece", src_subword_model=sp_model, src_subword_vocab="v", src_vocab_threshold=5)

    def test_a_model_that_loses_newlines_is_refused_when_one_comes(self, write):
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the cat sat on the mat"] * 9),
            model_prefix=write("lossy", "") + "_sp",
            vocab_size=30,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        options = {"subword": SubwordConfig(src_subword_model=write("lossy", "") + "_sp.model")}
        transforms = build_transforms(["sentencepiece"], options, NO_CORPUS, make_context())
        run(transforms, [lm("the cat")])
        with pytest.raises(DataError, match="line breaks"):
            run(transforms, [lm("the\ncat")])

    def test_the_checkpoint_learns_its_tokenisers_from_the_options(self, sp_model):
        options = {"subword": SubwordConfig(src_subword_model=sp_model)}
        src, tgt = tokenizer_specs(DataConfig(transforms=["filtertoolong", "sentencepiece"], transform_options=options))
        assert src == tgt and src is not None and (src.kind, src.file) == ("sentencepiece", sp_model)
        assert tokenizer_specs(DataConfig(transforms=["filtertoolong"], transform_options=options)) == (None, None)


class TestFilterTooLong:
    @pytest.mark.parametrize(
        ("task", "add_bos", "sizes", "dropped"),
        [
            ("lm", True, [(8, 0), (9, 0), (4, 4), (5, 4)], {"too_long": 2}),
            ("lm", False, [(9, 0), (10, 0)], {"too_long": 1}),
            ("seq2seq", True, [(10, 4), (11, 4), (10, 5)], {"src_too_long": 1, "tgt_too_long": 1}),
        ],
    )
    def test_lengths_count_specials(self, task, add_bos, sizes, dropped):
        options = {"filtertoolong": FilterTooLongConfig(src_seq_length=10, tgt_seq_length=6)}
        context = make_context(task=task, add_bos=add_bos)
        transforms = build_transforms(["filtertoolong"], options, NO_CORPUS, context)
        examples = [
            Example([Segment(tokens=["x"] * src)], [Segment(tokens=["y"] * tgt)] if tgt else []) for src, tgt in sizes
        ]
        assert len(run(transforms, examples)) == len(sizes) - sum(dropped.values())
        assert transforms[-1].dropped == dropped


class TestAffixes:
    def test_text_before_the_tokeniser_tokens_behind_it(self):
        corpus = CorpusConfig(options={"src_prefix": "to de:", "tgt_suffix": "</s> deu"})
        options = {"prefix": PrefixConfig(src_prefix="unused", tgt_prefix="all"), "suffix": SuffixConfig()}
        context = make_context(task="seq2seq")
        before = build_transforms(["prefix"], options, corpus, context)
        (example,) = run(before, [pair("a b", "x")])
        assert (tokens(example.src), tokens(example.tgt)) == ([["to", "de:", "a", "b"]], [["all", "x"]])
        # a checkpoint's tokeniser stands in front of `suffix` only if it is listed there; at the end it is default
        behind = build_transforms(["filtertoolong", "suffix"], options, corpus, context)
        (example,) = run(behind, [pair("a b", "x")])
        assert tokens(example.tgt) == [["x"], ["</s>", "deu"]]

    def test_undo_takes_the_targets_affixes_off(self):
        corpus = CorpusConfig(options={"tgt_prefix": "all", "tgt_suffix": "end"})
        transforms = build_transforms(["prefix", "suffix"], {}, corpus, make_context(task="seq2seq"))
        assert undo_all(transforms, ["all", "x", "y", "end"]) == "x y"
        assert undo_all(transforms, ["x", "y"]) == "x y"

    @given(TEXT, TEXT, TEXT.filter(bool))
    def test_undo_gives_back_every_text(self, prefix, suffix, text):
        corpus = CorpusConfig(options={"tgt_prefix": prefix, "tgt_suffix": suffix})
        transforms = build_transforms(["prefix", "suffix"], {}, corpus, make_context(task="seq2seq"))[:2]
        (example,) = run(transforms, [pair("a", text)])
        output: str | list[str] = example.tgt[0].text or ""
        for transform in reversed(transforms):
            output = transform.undo(output)
        assert output == text

    @given(*[st.lists(st.sampled_from("abc"), max_size=4)] * 2, st.lists(st.sampled_from("abc"), min_size=1))
    def test_undo_gives_back_all_tokens(self, prefix, suffix, tokens):
        affixes = [Prefix(src="", tgt=" ".join(prefix)), Suffix(src="", tgt=" ".join(suffix))]
        (example,) = run(affixes, [Example([Segment("a")], [Segment(tokens=list(tokens))])])
        output: str | list[str] = [token for part in example.tgt for token in part.tokens or ()]
        for transform in reversed(affixes):
            output = transform.undo(output)
        assert output == tokens


class TestMask:
    def cut(self, line: str, **context) -> list[tuple[str | None, bool]]:
        corpus_context = make_context(**{"zero_out_prompt_loss": True, **context})
        transform = InsertMask.build(MaskConfig(), NO_CORPUS, corpus_context)
        example = transform(Example([Segment(from_line(line))]))
        if example is None:
            assert transform.dropped == {"no_response_pattern": 1}
            return []
        assert "".join(segment.text or "" for segment in example.src) == from_line(line)
        return [(segment.text, segment.train_on) for segment in example.src]

    @pytest.mark.parametrize("heading", ["### Response:｟newline｠", "Response : ｟newline｠"])
    def test_the_answer_alone_is_trained(self, heading):
        prompt = f"### Instruction:｟newline｠Tips?｟newline｠｟newline｠{heading}"
        assert self.cut(f"{prompt}Eat.｟newline｠Sleep.") == [(from_line(prompt), False), ("Eat.\nSleep.", True)]
        assert self.cut(f"{prompt}Eat.", zero_out_prompt_loss=False) == [(from_line(prompt), True), ("Eat.", True)]

    def test_every_round_of_a_conversation(self):
        ask, answer = "### Instruction:｟newline｠", "｟newline｠｟newline｠### Response:｟newline｠"
        line = f"Intro {ask}q1{answer}a1｟newline｠｟newline｠{ask}q2{answer}a2"
        assert [text for text, trained in self.cut(line) if trained] == ["a1", "a2"]

    def test_a_prompt_without_answer_trains_nothing(self):
        assert [
            trained for _, trained in self.cut("### Response:｟newline｠a｟newline｠### Instruction:｟newline｠q")
        ] == [
            False,
            True,
            False,
        ]

    def test_an_example_without_heading_is_dropped(self):
        assert self.cut("no heading here, nor Response:") == []

    def test_examples_with_marks_of_their_own_are_left_alone(self):
        transform = InsertMask.build(MaskConfig(), NO_CORPUS, make_context(zero_out_prompt_loss=True))
        marked = Example([Segment("p", train_on=False), Segment("a")])
        assert transform(marked) is marked and not transform.dropped


class TestWordsOfAffixes:
    class Pieces(WhitespaceTokenizer):
        """A tokeniser with a vocabulary of its own."""

        def vocab_tokens(self) -> list[str]:
            return ["a"]

    @pytest.mark.parametrize(
        ("names", "tokenizer", "found"),
        [
            (["prefix"], WhitespaceTokenizer(), ["｟de｠", "to"]),
            (["prefix", "sentencepiece"], Pieces(), []),
            (["sentencepiece", "prefix"], Pieces(), ["｟de｠", "to"]),
        ],
    )
    def test_those_that_are_tokens_belong_into_the_vocabulary(self, names, tokenizer, found):
        options = {"prefix": PrefixConfig(src_prefix="｟de｠ to")}
        data = DataConfig(data={"c": NO_CORPUS}, transforms=names, transform_options=options)
        assert added_tokens(data.data, data, tokenizers=[tokenizer]) == found
