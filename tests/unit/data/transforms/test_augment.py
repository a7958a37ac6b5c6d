"""`fuzzymatch`, `terminology` and `inlinetags`: what they add, to how many examples, and what they refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.build import added_tokens, build_transforms
from onmt_llm.data.transforms.fuzzymatch import FuzzyMatchConfig
from onmt_llm.data.transforms.inlinetags import InlineTagsConfig, with_tags
from onmt_llm.data.transforms.phrases import Phrases, exact_words
from onmt_llm.data.transforms.terminology import TerminologyConfig
from onmt_llm.data.transforms.transform import Transform
from onmt_llm.errors import ConfigError, DataError, UnsupportedError
from onmt_llm.text.segment import Segment
from tiny_codecs import make_context


def build(name: str, config: Section, *, training: bool = True) -> Transform:
    context = make_context(task="seq2seq", training=training)
    transform = build_transforms([name], {name: config}, CorpusConfig(), context)[0]
    transform.reseed(3)
    return transform


def pairs(*texts: tuple[str, str]) -> list[Example]:
    return [Example([Segment(src)], [Segment(tgt)] if tgt else []) for src, tgt in texts]


def sources(examples: Sequence[Example]) -> list[str]:
    return [example.src[0].text or "" for example in examples]


def run(transform: Transform, *texts: tuple[str, str]) -> list[str]:
    return sources(transform.batch(pairs(*texts)))


MEMORY = "the black cat sleeps\tdie schwarze Katze schläft\nthe black cat sleeps well\tdie Katze schläft gut\n"
TERMS = "black cat\tschwarze Katze\ncat\tKatze\nmat\tMatte\n"


class TestFuzzyMatch:
    def config(self, write: Any, memory: str = MEMORY, **options: Any) -> FuzzyMatchConfig:
        return FuzzyMatchConfig(tm_path=write("tm", memory), fuzzy_corpus_ratio=1, **options)

    def test_the_most_similar_sentence_that_is_not_the_same(self, write):
        transform = build("fuzzymatch", self.config(write))
        assert run(transform, ("the black cat sleeps welt", ""), ("something else", "")) == [
            "the black cat sleeps welt ｟fuzzy｠ die Katze schläft gut",
            "something else",
        ]
        # an equal sentence is no match, and does not hide the next best
        assert run(transform, ("the black cat sleeps", ""))[0].endswith("｟fuzzy｠ die Katze schläft gut")
        assert run(transform, ("the black cat ｟fuzzy｠ x", "")) == ["the black cat ｟fuzzy｠ x"]

    def test_threshold_lengths_delimiter_and_token(self, write):
        assert run(build("fuzzymatch", self.config(write, fuzzy_threshold=99)), ("the black cat slept", "")) == [
            "the black cat slept"
        ]
        for limits in ({"fuzzymatch_max_length": 18}, {"fuzzymatch_min_length": 26}):
            transform = build("fuzzymatch", self.config(write, **limits))
            assert run(transform, ("the black cat slept", "")) == ["the black cat slept"]
        config = self.config(write, "a b c d|x y\n", tm_delimiter="|", fuzzy_token="｟tm｠")
        assert run(build("fuzzymatch", config), ("a b c e", "")) == ["a b c e ｟tm｠ x y"]
        assert added_tokens(
            {"c": CorpusConfig(transforms=["fuzzymatch"])}, DataConfig(transform_options={"fuzzymatch": config})
        ) == ["｟tm｠"]

    @pytest.mark.parametrize(
        ("memory", "message"), [("a\tb\nc\n", "tm:2 must hold"), ("a\tb\tc\n", "3 columns"), (b"\xff\tb\n", "UTF-8")]
    )
    def test_a_bad_memory_is_refused_with_its_line(self, write, memory, message):
        with pytest.raises(DataError, match=message):
            build("fuzzymatch", self.config(write, memory))

    def test_files_and_packages_that_are_not_there(self, write, monkeypatch):
        with pytest.raises(ConfigError, match="tm_path must name a file"):
            build("fuzzymatch", FuzzyMatchConfig())
        with pytest.raises(DataError, match="there is none at nowhere"):
            build("fuzzymatch", FuzzyMatchConfig(tm_path="nowhere"))
        monkeypatch.setitem(__import__("sys").modules, "rapidfuzz.process", None)
        with pytest.raises(UnsupportedError, match="needs the package 'rapidfuzz'"):
            build("fuzzymatch", self.config(write))


class TestTerminology:
    def config(self, write: Any, **options: Any) -> TerminologyConfig:
        return TerminologyConfig(
            termbase_path=write("terms", TERMS), **{"term_corpus_ratio": 1, "term_example_ratio": 1, **options}
        )

    def test_the_longest_term_whose_translation_stands_in_the_target(self, write):
        transform = build("terminology", self.config(write))
        marked = (
            "The ｟src_term_start｠ Black  Cat ｟tgt_term_start｠ schwarze Katze ｟tgt_term_end｠, on the "
            "｟src_term_start｠ mat ｟tgt_term_start｠ Matte ｟tgt_term_end｠."
        )
        text = "The Black  Cat, on the mat."
        assert run(transform, (text, "Die schwarze Katze, auf der Matte.")) == [marked]
        assert run(transform, (text, "")) == [marked]  # a question: the target is not known
        assert run(transform, (text, "Die Katzen auf Matten")) == [text]
        assert run(transform, ("a ｟fuzzy｠ cat", "Katze")) == ["a ｟fuzzy｠ cat"]

    def test_no_more_terms_than_the_share_of_the_words(self, write):
        transform = build("terminology", self.config(write, term_example_ratio=0.4))
        assert run(transform, ("cat mat x", "Katze Matte"))[0].count("｟src_term_start｠") == 1

    def test_spacy_models_find_lemmas(self, write, tmp_path):
        models = [blank_spacy_model(tmp_path / side, lemmas) for side, lemmas in LEMMAS.items()]
        config = self.config(write, src_spacy_language_model=models[0], tgt_spacy_language_model=models[1])
        (marked,) = run(build("terminology", config), ("the cats sat", "die Katzen saßen"))
        assert marked == "the ｟src_term_start｠ cats ｟tgt_term_start｠ Katze ｟tgt_term_end｠ sat"

    def test_what_is_refused(self, write):
        with pytest.raises(ConfigError, match="must be given with"):
            build("terminology", self.config(write, src_spacy_language_model="en_core_web_sm"))
        both = {"src_spacy_language_model": "no_such", "tgt_spacy_language_model": "no_such"}
        with pytest.raises((ConfigError, UnsupportedError), match=r"no_such|'spacy'"):
            build("terminology", self.config(write, **both))


DATA = DataConfig()
LEMMAS = {"en": {"cats": "cat"}, "de": {"Katzen": "Katze"}}


def blank_spacy_model(folder: Path, lemmas: dict[str, str]) -> str:
    """A spaCy model on disk whose lemmatiser looks up these words."""
    spacy = pytest.importorskip("spacy")
    lookups = pytest.importorskip("spacy.lookups").Lookups()
    pipeline = spacy.blank(folder.name)
    lemmatizer = pipeline.add_pipe("lemmatizer", config={"mode": "lookup"})
    lookups.add_table("lemma_lookup", lemmas)
    lemmatizer.initialize(lookups=lookups)
    pipeline.to_disk(folder)
    return str(folder)


class TestInlineTags:
    def config(self, write: Any, **options: Any) -> InlineTagsConfig:
        return InlineTagsConfig(tags_dictionary_path=write("tags", TERMS), **{"tags_corpus_ratio": 1, **options})

    def test_a_phrase_and_its_translation_get_the_same_tags(self, write):
        transform = build("inlinetags", self.config(write, max_tags=1))
        forms: Counter[tuple[str, str]] = Counter()
        for _ in range(2000):
            (example,) = transform.batch(pairs(("a cat, gone", "fort ist die Katze.")))
            forms[(example.src[0].text or "", example.tgt[0].text or "")] += 1
        paired = ("a ｟ph_1_beg｠ cat ｟ph_1_end｠, gone", "fort ist die ｟ph_1_beg｠ Katze ｟ph_1_end｠.")
        single = ("a ｟ph_1_std｠ cat, gone", "fort ist die ｟ph_1_std｠ Katze.")
        assert set(forms) == {paired, single} and abs(forms[paired] / 2000 - 0.75) < 0.04

    def test_numbers_go_up_from_anywhere_and_targets_may_be_in_another_order(self, write):
        transform = build("inlinetags", self.config(write, max_tags=4, isolated_tag="｟ph_#_beg｠"))
        starts: Counter[str] = Counter()
        for _ in range(1000):
            (example,) = transform.batch(pairs(("the cat on the mat", "auf der Matte die Katze")))
            source, target = (side[0].text or "" for side in (example.src, example.tgt))
            starts[source.split("｠")[0]] += 1
            assert target.index("Matte") < target.index("Katze")
            tag_of_mat = source.split("the ")[2].split(" ")[0]
            assert tag_of_mat in target.split("Matte")[0]
        assert set(starts) == {f"the ｟ph_{number}_beg" for number in (1, 2, 3, 4)}
        known = set(
            added_tokens(
                {"c": CorpusConfig(transforms=["inlinetags"])},
                DataConfig(transform_options={"inlinetags": transform._config}),
            )
        )
        assert {"｟ph_7_end｠", "｟ph_7_beg｠"} <= known

    def test_training_only_whole_words_only_and_not_behind_the_delimiter(self, write):
        text = ("cats ｟fuzzy｠ cat", "Katze")
        assert run(build("inlinetags", self.config(write)), text) == [text[0]]
        assert run(build("inlinetags", self.config(write), training=False), ("cat", "Katze")) == ["cat"]
        with pytest.raises(ValidationError, match="must hold one #"):
            InlineTagsConfig(paired_stag="｟ph｠")

    def test_max_tags(self, write):
        transform = build("inlinetags", self.config(write, max_tags=2))
        (example,) = transform.batch(pairs(("cat cat cat", "Katze Katze Katze")))
        assert (example.tgt[0].text or "").endswith(" Katze")


class TestShare:
    @pytest.mark.parametrize("size", [1, 7, 400])
    def test_a_random_share_in_training_all_elsewhere(self, write, size):
        config = TerminologyConfig(termbase_path=write("terms", TERMS), term_corpus_ratio=0.3, term_example_ratio=1)
        transform = build("terminology", config)
        places: Counter[int] = Counter()
        rounds = 4000 // size
        for _ in range(rounds):
            marked = run(transform, *[("cat", "Katze")] * size)
            places.update(place for place, text in enumerate(marked) if "｟" in text)
        assert abs(places.total() / (rounds * size) - 0.3) < 0.03
        if size == 7:
            assert all(abs(count / rounds - 0.3) < 0.08 for count in places.values()) and len(places) == 7
        everywhere = run(build("terminology", config, training=False), *[("cat", "Katze")] * size)
        assert all("｟" in text for text in everywhere)

    def test_repeats_after_reseed(self, write):
        config = InlineTagsConfig(tags_dictionary_path=write("tags", TERMS), tags_corpus_ratio=0.5)
        transform = build("inlinetags", config)
        texts = [("the cat on the mat", "die Katze auf der Matte")] * 20
        first = run(transform, *texts)
        assert run(transform, *texts) != first
        transform.reseed(3)
        assert run(transform, *texts) == first

    def test_conversations_are_left_alone(self, write):
        transform = build("terminology", TerminologyConfig(termbase_path=write("t", TERMS), term_example_ratio=1))
        chat = Example([Segment("cat", train_on=False), Segment("cat")])
        assert transform.batch([chat] * 5)[0].src == [Segment("cat", train_on=False), Segment("cat")]


def test_phrases_are_whole_words_the_longest_first():
    phrases = Phrases([("New York", "a"), ("New", "b"), ("York City", "c"), ("don't", "d")], exact_words)
    text = "New  York City, Newer don't New"
    assert [(text[found.start : found.end], found.entry[1]) for found in phrases.find(text)] == [
        ("New  York", "a"),
        ("don't", "d"),
        ("New", "b"),
    ]
    assert with_tags("(cat)mat", [(5, 8, "<1>", "</1>"), (1, 4, "<2>", "")]) == "( <2> cat) <1> mat </1>"
