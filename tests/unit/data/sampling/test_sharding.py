"""No example is repeated or missing, for any number of workers and ranks, and however often it changes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.errors import DataError
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

WORDS = [f"w{number}" for number in range(400)]
VOCAB = Vocab(["<unk>", "<blank>", "<s>", "</s>", *WORDS], SpecialTokens(pad="<blank>"))

Rows = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, CorpusConfig]:
    """Every line is another one: two corpora of 90 and 25 lines, with an empty line in each."""
    folder = tmp_path_factory.mktemp("corpora")
    draw = random.Random(5)
    made = {}
    for name, start, end, weight in (("x", 0, 90, 3), ("y", 90, 115, 1)):
        lines = [" ".join([WORDS[number], *draw.choices(WORDS, k=draw.randint(0, 9))]) for number in range(start, end)]
        path = folder / name
        path.write_text("\n".join([*lines[:7], "", *lines[7:]]) + "\n")
        made[name] = CorpusConfig(path_src=str(path), weight=weight)
    return made


def build(corpora, batching=None, *, epochs=0, training=True, rank=0, world_size=1, **data) -> Pipeline:
    spec = make_spec(
        corpora,
        make_codec("lm", VOCAB),
        DataConfig(epochs=epochs, skip_empty_level="silent", **data),
        batching=BatchConfig(**{"batch_size": 3, "bucket_size": 8, **(batching or {})}),
        seed=11,
        training=training,
    )
    return Pipeline(spec, rank=rank, world_size=world_size)


def rows(batch: Batch) -> Rows:
    return tuple(tuple(label for label in row if label != -100) for row in batch.labels_BT.tolist())


def examples(batches: list[Rows]) -> Counter:
    return Counter(row for batch in batches for row in batch)


def states(pipelines: list[Pipeline]) -> list[dict]:
    """As a checkpoint would hold them."""
    return json.loads(json.dumps([pipeline.state_dict() for pipeline in pipelines]))


def walk(pipelines: list[Pipeline], steps: int) -> list[Rows]:
    """`steps` batches of every rank, as far as there are some."""
    return [rows(batch) for pipeline in pipelines for batch in islice(iter(pipeline), steps)]


def world(corpora, size: int, **options) -> list[Pipeline]:
    return [build(corpora, rank=rank, world_size=size, **options) for rank in range(size)]


LAYOUTS = {
    "sents": {},
    "tokens": {"batch_type": "tokens", "batch_size": 30},
    "packed": {"batch_type": "tokens", "batch_size": 24, "packing": "pack", "packing_length": 12},
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.integers(1, 3),
    workers=st.integers(0, 1),
    bucket=st.integers(1, 60),
    epochs=st.integers(1, 2),
    layout=st.sampled_from(sorted(LAYOUTS)),
    training=st.booleans(),
)
def test_every_example_once_an_epoch(corpora, ranks, workers, bucket, epochs, layout, training):
    batching = {**LAYOUTS[layout], "bucket_size": bucket, "num_workers": workers, "worker_type": "thread"}
    pipelines = world(corpora, ranks, batching=batching, epochs=epochs, training=training)
    batches = [rows(batch) for pipeline in pipelines for batch in pipeline]
    seen = examples(batches)
    if layout == "packed" and training:
        assert sum(sum(map(len, rows)) for rows in batches) == epochs * 115 + epochs * _words(corpora)
    else:
        assert len(seen) == 115 and set(seen.values()) == {epochs if training else 1}
    counts = [pipeline.counts[name] for pipeline in pipelines for name in ("x", "y")]
    assert all(count.read == count.kept + sum(count.dropped.values()) for count in counts)
    assert sum(count.read for count in counts) == (epochs if training else 1) * 117
    assert sum(count.dropped["empty"] for count in counts) == (epochs if training else 1) * 2


def _words(corpora) -> int:
    return sum(len(open(corpus.path_src).read().split()) for corpus in corpora.values())


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [
        (1, 3),
        (2, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)]),
    ],
)
def test_worker_processes_change_nothing(corpora, ranks, workers):
    one = [rows(batch) for pipeline in world(corpora, ranks, epochs=1) for batch in pipeline]
    batching = {"num_workers": workers}
    assert [rows(batch) for pipeline in world(corpora, ranks, epochs=1, batching=batching) for batch in pipeline] == one
    assert len(examples(one)) == 115


def test_batches_are_the_same_for_any_number_of_ranks(corpora):
    def union(size: int) -> Counter:
        return Counter(rows(batch) for pipeline in world(corpora, size, epochs=1) for batch in pipeline)

    assert union(1) == union(2) == union(5)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_two_hundred_batches_after_any_interruption_are_those_of_a_run_without(corpora, layout):
    draw = random.Random(layout)
    batching = {**LAYOUTS[layout], "bucket_size": 40}
    expected = walk([build(corpora, batching)], 500)
    for stop in draw.sample(range(300), 20):
        workers, later = draw.choice([(0, 0), (1, 0), (0, 1)])
        first = build(corpora, {**batching, "num_workers": workers, "worker_type": "thread"})
        assert walk([first], stop) == expected[:stop]
        second = build(corpora, {**batching, "num_workers": later, "worker_type": "thread"})
        second.load_state_dict(*states([first]))
        assert walk([second], 200) == expected[stop : stop + 200]
        assert second.counts == walked(corpora, batching, stop + 200).counts


def walked(corpora, batching, steps: int) -> Pipeline:
    pipeline = build(corpora, batching)
    walk([pipeline], steps)
    return pipeline


@pytest.mark.parametrize(("workers", "later"), [(0, 2), (3, 1), (2, 3), (1, 0)])
def test_the_number_of_processes_may_change_at_an_interruption(corpora, workers, later):
    expected = walk([build(corpora)], 290)
    stop = 40 * workers + 13
    first = build(corpora, {"num_workers": workers})
    assert walk([first], stop) == expected[:stop]
    second = build(corpora, {"num_workers": later})
    second.load_state_dict(*states([first]))
    assert walk([second], 100) == expected[stop : stop + 100]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    steps=st.lists(st.integers(0, 12), min_size=3, max_size=3),
    bucket=st.integers(1, 60),
)
def test_the_number_of_ranks_may_change_at_any_time(corpora, sizes, steps, bucket):
    options = {"epochs": 1, "batching": {"bucket_size": bucket}}
    everything = Counter(walk(world(corpora, 1, **options), 10_000))
    pipelines, done = world(corpora, sizes[0], **options), Counter()
    for size, number in zip(sizes[1:], steps, strict=False):
        done.update(walk(pipelines, number))
        saved = states(pipelines)
        pipelines = world(corpora, size, **options)
        for pipeline in pipelines:
            pipeline.load_state_dict(*saved)
    done.update(walk(pipelines, 10_000))
    assert done == everything
    assert sum(pipeline.counts[name].read for pipeline in pipelines for name in ("x", "y")) == 117


def test_the_stream_of_one_rank_goes_on_in_two(corpora):
    """Also where it has no end: what two ranks do next is what one would have done."""
    one = build(corpora)
    stream: Iterator[Batch] = iter(one)
    walked = [rows(batch) for batch in islice(stream, 50)]
    saved = states([one])
    two = world(corpora, 2)
    for pipeline in two:
        pipeline.load_state_dict(*saved)
    ahead = walk(two, 60)
    expected = [rows(batch) for batch in islice(stream, 200)]
    assert walked and not Counter(ahead) - Counter(expected)
    assert Counter(expected[:80]) - Counter(ahead) == Counter()


def test_other_buckets_from_where_the_old_ones_end(corpora):
    options = {"epochs": 1, "batching": {"bucket_size": 7}}
    pipelines = world(corpora, 2, **options)
    done = examples(walk(pipelines, 5))
    saved = states(pipelines)
    resized = world(corpora, 2, epochs=1, batching={"bucket_size": 20})
    for pipeline in resized:
        pipeline.load_state_dict(*saved)
    assert set((done + examples(walk(resized, 1000))).values()) == {1}


def test_states_of_some_ranks_only_are_refused(corpora):
    state = states(world(corpora, 2))[0]
    with pytest.raises(DataError, match="positions must be those of all 2 ranks"):
        build(corpora, rank=0, world_size=3).load_state_dict(state)
    with pytest.raises(DataError, match="must have version"):
        build(corpora).load_state_dict({"version": 1})


def test_corpora_are_mixed_in_the_proportions_asked_for(corpora):
    shared = {"batching": {"bucket_size": 50}}
    fractions = {name: corpus.model_copy(update={"weight": 0.5}) for name, corpus in corpora.items()}
    for given_corpora, options, share in (
        (corpora, {}, 0.75),
        (fractions, {}, 0.5),
        (fractions, {"mixing_temperature": 1.0}, 91 / 117),
    ):
        pipeline = build(given_corpora, **shared, **options)
        walk([pipeline], 400)
        read = {name: count.read for name, count in pipeline.counts.items()}
        assert read["x"] / sum(read.values()) == pytest.approx(share, abs=0.01)
