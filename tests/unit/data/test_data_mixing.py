"""Weighted corpora: proportions, restart, state, and shares of ranks."""

from __future__ import annotations

import json
from itertools import chain, islice

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.mixing import Mixer, Source
from onmt_llm.data.readers import open_reader
from onmt_llm.errors import DataError


@pytest.fixture
def make_mixer(write):
    def make(**options) -> Mixer:
        files = {"x": ("x1\nx2\nx3\n", 2), "y": ("y1\ny2\n", 1)}
        sources = [
            Source(name, open_reader(name, CorpusConfig(path_src=write(name, text))), weight)
            for name, (text, weight) in files.items()
        ]
        return Mixer(sources, **{"infinite": True, **options})

    return make


def take(mixer: Mixer, number: int) -> list[str]:
    drawn = islice(iter(mixer.draw, None), number)
    return [record.parts[0].decode() for _, record in drawn]


def test_each_corpus_has_its_turn_and_begins_again(make_mixer):
    mixer = make_mixer()
    assert " ".join(take(mixer, 12)) == "x1 x2 y1 x3 x1 y2 x2 x3 y1 x1 x2 y2"
    assert {source.name: source.epoch for source in mixer.sources} == {"x": 3, "y": 2}


def test_a_finite_mixture_reads_each_corpus_once(make_mixer):
    mixer = make_mixer(infinite=False)
    assert take(mixer, 99) == ["x1", "x2", "x3", "y1", "y2"]


@pytest.mark.parametrize("taken", range(8))
def test_saved_state_continues_with_the_next_record(make_mixer, taken):
    expected = take(make_mixer(), 20)
    mixer = make_mixer()
    take(mixer, taken)
    state = json.loads(json.dumps(mixer.state_dict()))
    restored = make_mixer()
    restored.load_state_dict(state)
    assert take(restored, 10) == expected[taken : taken + 10]


def test_ranks_share_what_one_process_would_read(make_mixer):
    shares = [take(make_mixer(infinite=False, rank=rank, world_size=3), 99) for rank in range(3)]
    assert sorted(chain.from_iterable(shares)) == ["x1", "x2", "x3", "y1", "y2"]


def test_a_corpus_without_records_is_an_error_not_a_loop(write):
    reader = open_reader("blank", CorpusConfig(path_txt=write("blank", "\n\n")))
    with pytest.raises(DataError, match="'blank' must hold at least one example"):
        Mixer([Source("blank", reader)], infinite=True).draw()


def test_state_of_other_corpora_is_refused(make_mixer):
    state = make_mixer().state_dict()
    state["corpora"] = {"z": state["corpora"]["x"]}
    with pytest.raises(DataError, match="but is of z"):
        make_mixer().load_state_dict(state)
