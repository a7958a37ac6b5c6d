"""Weighted corpora: proportions, restart, passes, state."""

from __future__ import annotations

import json
import random

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers import open_reader
from onmt_llm.data.sampling.mixing import Mixer, WeightedCorpus, count_records, in_turns, proportional, tempered
from onmt_llm.errors import DataError


@pytest.fixture
def make_mixer(write):
    def make(weights=(2, 1), **options) -> Mixer:
        files = {"x": "x1\nx2\nx3\n", "y": "y1\ny2\n"}
        sources = [
            WeightedCorpus(name, open_reader(name, CorpusConfig(path_src=write(name, text))), weight)
            for (name, text), weight in zip(files.items(), weights, strict=True)
        ]
        return Mixer(sources, **options)

    return make


def take(mixer: Mixer, number: int) -> list[str]:
    """Records drawn one by one."""
    drawn = [record.parts[0].decode() for _ in range(number) for own in mixer.draw(1) for record in own]
    return drawn


def test_each_corpus_has_its_turn_and_begins_again(make_mixer):
    mixer = make_mixer()
    assert " ".join(take(mixer, 12)) == "x1 x2 y1 x3 x1 y2 x2 x3 y1 x1 x2 y2"
    assert {source.name: source.epoch for source in mixer.sources} == {"x": 3, "y": 2}


def test_a_bucket_holds_what_would_be_drawn_one_by_one(make_mixer):
    expected = take(make_mixer(), 60)
    mixer, at = make_mixer(), 0
    for size in (1, 7, 2, 11, 30):
        drawn = [record.parts[0].decode() for own in mixer.draw(size) for record in own]
        assert sorted(drawn) == sorted(expected[at : at + size])
        at += size


def test_skipped_records_are_those_that_would_have_been_drawn(make_mixer):
    for options in ({}, {"weights": (0.7, 0.3)}, {"passes": 2}, {"passes": 1, "in_order": True}):
        one, other = make_mixer(**options), make_mixer(**options)
        for _ in range(6):
            assert one.skip(3) == sum(map(len, other.draw(3)))
            assert one.state_dict() == other.state_dict()


def test_a_finite_mixture_reads_each_corpus_so_often(make_mixer):
    assert take(make_mixer(passes=1, in_order=True), 99) == ["x1", "x2", "x3", "y1", "y2"]
    twice = make_mixer(passes=2)
    assert sorted(take(twice, 99)) == sorted(["x1", "x2", "x3", "y1", "y2"] * 2)
    assert twice.draw(5) == [[], []]


@pytest.mark.parametrize("weights", [(2, 1), (0.5, 0.7)])
@pytest.mark.parametrize("taken", range(8))
def test_saved_state_continues_with_the_next_record(make_mixer, taken, weights):
    expected = take(make_mixer(weights), 20)
    mixer = make_mixer(weights)
    take(mixer, taken)
    state = json.loads(json.dumps(mixer.state_dict()))
    restored = make_mixer(weights)
    restored.load_state_dict(state)
    assert take(restored, 10) == expected[taken : taken + 10]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["path_jsonl", "path_txt", "path_src, path_tgt", "path_src"])
def test_a_position_in_files_of_another_kind_is_refused(write, kind, named):
    def mixer(fields: str) -> Mixer:
        paths = {field: write(field, '{"text": "a"}\n{"text": "b"}\n') for field in fields.split(", ")}
        return Mixer([WeightedCorpus("x", open_reader("x", CorpusConfig(**paths)), 1)])

    saved = mixer("path_src, path_tgt")
    take(saved, 1)
    state = saved.state_dict()
    if not named:  # as states of before are
        del state["corpora"]["x"]["reader"]
    if kind == "path_src, path_tgt":
        mixer(kind).load_state_dict(state)
        return
    with pytest.raises(DataError, match="the kind of files that it had when the run was saved"):
        mixer(kind).load_state_dict(state)


@pytest.mark.parametrize("weights", [(10, 10), (7, 2, 1), (0.7, 0.2, 0.1), (0.95, 0.03, 0.02), (1.5, 1, 1, 8)])
def test_proportions_are_those_of_the_weights(weights):
    drawn, phase, draw = [0] * len(weights), 0, random.Random(1)
    while sum(drawn) < 100_000:
        number = draw.randint(1, 5000)
        if all(isinstance(weight, int) for weight in weights):
            counts, phase = in_turns(weights, phase, number), phase + number
        else:
            counts = proportional(weights, drawn, number)
        assert sum(counts) == number and min(counts) >= 0
        drawn = [have + more for have, more in zip(drawn, counts, strict=True)]
    for have, weight in zip(drawn, weights, strict=True):
        assert have / sum(drawn) == pytest.approx(weight / sum(weights), rel=0.01)


def test_temperature_is_between_by_size_and_all_alike(make_mixer):
    sizes = [count_records(source.reader) for source in make_mixer().sources]
    assert sizes == [3, 2]
    assert tempered([1, 1], [900, 100], 1.0) == pytest.approx([0.9, 0.1])
    assert tempered([1, 1], [900, 100], 2.0) == pytest.approx([0.75, 0.25])
    assert tempered([1, 3], [900, 100], 1e9) == pytest.approx([0.25, 0.75])


def test_a_corpus_without_records_is_an_error_not_a_loop(write):
    reader = open_reader("blank", CorpusConfig(path_txt=write("blank", "\n\n")))
    with pytest.raises(DataError, match="'blank' must hold at least one example"):
        Mixer([WeightedCorpus("blank", reader)]).draw(1)


def test_state_of_other_corpora_is_refused(make_mixer):
    state = make_mixer().state_dict()
    state["corpora"] = {"z": state["corpora"]["x"]}
    with pytest.raises(DataError, match="but is of z"):
        make_mixer().load_state_dict(state)
