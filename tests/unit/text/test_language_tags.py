"""BCP 47 tags of the languages of multilingual models."""

from __future__ import annotations

import pytest

from onmt_llm.checkpoint.formats.language_codes import M2M_100_LANGUAGES, MBART_50_LANGUAGES, NLLB_LANGUAGES
from onmt_llm.config.checkpoint import CheckpointConfig, LanguageTokens, SequenceTokens
from onmt_llm.text.language_tags import find_tag, language_name, offered_languages, tags_of
from tests.tiny import seq2seq

TABLES = {"NLLB": NLLB_LANGUAGES, "mBART-50": MBART_50_LANGUAGES, "M2M100": M2M_100_LANGUAGES}


@pytest.mark.parametrize("name", TABLES)
def test_every_language_of_the_published_models_has_a_tag_of_its_own_and_a_name(name: str) -> None:
    tags = tags_of(TABLES[name])
    assert sorted(tags.values()) == sorted(TABLES[name])
    assert [tag for tag in tags if language_name(tag) == tag] == []
    assert len({language_name(tag) for tag in tags}) == len(tags)
    assert all(find_tag(tag, tags) == tag and find_tag(code, tags) == tag for tag, code in tags.items())


@pytest.mark.parametrize(
    ("wanted", "nllb", "mbart"),
    [
        ("en", "en", "en"),
        ("EN-us", "en", "en"),
        ("eng", "en", "en"),
        ("zh", "zh-Hans", "zh"),
        ("zh-CN", "zh-Hans", "zh"),
        ("zh_Hant", "zh-Hant", "zh"),
        ("zt", "zh-Hant", "zh"),
        ("pt-BR", "pt", "pt"),
        ("pb", "pt", "pt"),
        ("no", "nb", None),
        ("arb", "ar", "ar"),
        ("iw", "he", "he"),
        ("ace", None, None),
        ("ace-latn", "ace-Latn", None),
        ("xx", None, None),
        ("", None, None),
    ],
)
def test_what_people_call_a_language(wanted: str, nllb: str | None, mbart: str | None) -> None:
    assert find_tag(wanted, tags_of(NLLB_LANGUAGES)) == nllb
    assert find_tag(wanted, tags_of(MBART_50_LANGUAGES)) == mbart


def test_unknown_codes_stay_as_they_are() -> None:
    assert tags_of(["fra", "qqq_Latn"]) == {"fr": "fra", "qqq_Latn": "qqq_Latn"}
    assert language_name("qqq_Latn") == "qqq_Latn"


def config(**sequences: list[str]) -> CheckpointConfig:
    languages = LanguageTokens(tokens={"fra": ">>fra<<", "deu": ">>deu<<"} if sequences else {})
    return CheckpointConfig(model=seq2seq(), sequences=SequenceTokens(**sequences), languages=languages)


def test_offered_languages() -> None:
    assert offered_languages(config()) == ({}, {})
    assert offered_languages(config(), src="en", tgt="de_DE") == ({"en": "en"}, {"de": "de_DE"})
    into = config(src_prefix=["{tgt_lang}"])
    assert offered_languages(into, src="en") == ({"en": "en"}, {"fr": "fra", "de": "deu"})
    both = config(src_prefix=["{src_lang}"], decoder_start=["{tgt_lang}"])
    assert offered_languages(both) == ({"fr": "fra", "de": "deu"},) * 2
