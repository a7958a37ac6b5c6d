"""Texts translated line by line, and the words that belong together; the HTML that shows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from onmt_llm.chat.translation_model import ShownWord, TranslationModel, align_words, split_words
from onmt_llm.chat.translator_page import alignment_html, alternatives_html
from onmt_llm.config.checkpoint import LanguageTokens, SequenceTokens
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.generate.open import open_engine
from onmt_llm.generate.scheduling.scheduler import Scheduler
from onmt_llm.releasing import release
from onmt_llm.text.codec import Codec

OPTIONS = GenerationConfig(max_length=6, beam_size=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translator")
    return tiny.write_checkpoint(folder / "model", tiny.seq2seq(), scale=0.5)


@pytest.fixture(scope="module", params=["torch", "ct2"])
def model(request: pytest.FixtureRequest, checkpoint: Path) -> Iterator[TranslationModel]:
    path = checkpoint
    if request.param == "ct2":
        path = checkpoint.with_name("ct2")
        release(checkpoint, path, text="w1 w2 w3")
    with Scheduler(open_engine(path, device="cpu")) as scheduler:
        yield TranslationModel(scheduler, OPTIONS)


def test_a_text_is_translated_line_by_line(model: TranslationModel, checkpoint: Path) -> None:
    lines = ["w1 w2", "", *(f"w{number} w3" for number in range(12))]
    results = list(model.translate("\n".join(lines)))
    assert [result.done for result in results] == sorted(result.done for result in results)
    last = results[-1]
    assert last.done == last.lines == len(lines) and len(last.texts) == 1
    engine = open_engine(checkpoint, device="cpu")
    alone = [engine.generate([line.split()], OPTIONS)[0][0].text for line in lines]
    assert last.texts[0].split("\n") == alone


def test_alternatives_are_whole_texts_best_first(model: TranslationModel) -> None:
    *_, last = model.translate("w1 w2\nw3", alternatives=4)
    assert len(last.texts) == 4 and all(text.count("\n") == 1 for text in last.texts)
    *_, best = model.translate("w1 w2\nw3", alternatives=4)
    assert best.texts == last.texts


def test_words_are_aligned(model: TranslationModel) -> None:
    *_, last = model.translate("w1 w2\n\nw3")
    first = last.aligned[0]
    assert [word.text for word in first.source] == ["w1", " ", "w2"]
    targets = [word for word in first.target if word.number is not None]
    assert "".join(word.text for word in first.target) == last.texts[0].split("\n")[0]
    assert targets and all(set(word.sources) <= {0, 1} and word.sources for word in targets)


def test_a_closed_iterator_stops_the_engine(model: TranslationModel) -> None:
    translation = model.translate("\n".join(["w1 w2"] * 200))
    assert next(translation).done <= 1
    translation.close()  # type: ignore[attr-defined]
    *_, last = model.translate("w1")
    assert last.done == 1


def test_a_model_of_many_languages_offers_them(tmp_path: Path) -> None:
    vocab = [*tiny.tokens(20), "__de__", "__en__", "__fr__", "x"]
    path = tiny.write_checkpoint(
        tmp_path / "many", tiny.seq2seq(), vocab, scale=0.5,
        sequences=SequenceTokens(src_prefix=["{src_lang}"], decoder_start=["{tgt_lang}"]),
        languages=LanguageTokens(tokens={"de": "__de__", "en": "__en__", "fr": "__fr__"}, src="de"),
    )  # fmt: skip
    with Scheduler(open_engine(path, device="cpu")) as scheduler:
        model = TranslationModel(scheduler, OPTIONS)
        assert model.languages == ["de", "en", "fr"] and model.defaults == ("de", "fr")
        *_, last = model.translate("w1 w2", src="de", tgt="en")
        assert [word.text for word in last.aligned[0].source] == ["w1", " ", "w2"]
        with pytest.raises(ConfigError, match="tgt_lang must be one of the 3 languages of the model, but is 'xx'"):
            next(model.translate("w1", src="de", tgt="xx"))


@pytest.mark.parametrize(
    ("pieces", "words", "owners"),
    [
        (["ein ", "Ha", "us"], ["ein", " ", "Haus"], [{0}, {1}, {1}]),
        ([" a", "  b c", ""], [" ", "a", "  ", "b", " ", "c"], [{0}, {1, 2}, set()]),
        (["你好", "吗 x"], ["你", "好", "吗", " ", "x"], [{0, 1}, {2, 3}]),
        ([], [], []),
    ],
)
def test_words_of_pieces(pieces: list[str], words: list[str], owners: list[set[int]]) -> None:
    found, places = split_words(pieces)
    assert [word.text for word in found] == words and places == owners
    numbers = [word.number for word in found if word.number is not None]
    assert numbers == list(range(len(numbers)))
    assert all((word.number is None) == word.text.isspace() for word in found)


def test_html_shows_text_as_it_is(checkpoint: Path) -> None:
    codec = Codec.open(checkpoint)
    line = align_words(codec, ["w1", "w2"], Hypothesis(["w3", "w4"], "w3 w4", 0.0, "stop", (1, 1)))
    html = alignment_html([line])
    assert '<span data-word="1">w2</span>' in html
    assert '<button type="button" data-sources="1" aria-label="w3, from w2">w3</button>' in html
    assert alignment_html([]) == "" and alternatives_html(["only one"]) == ""
    assert "<li>&lt;b&gt;x</li>" in alternatives_html(["<b>x", "y"])
    script = type(line)([ShownWord("<script>", 0)], [ShownWord('"<b>', 0, (0,))])
    assert "<script>" not in alignment_html([script]) and 'aria-label="&quot;&lt;b&gt;, from' in alignment_html(
        [script]
    )
