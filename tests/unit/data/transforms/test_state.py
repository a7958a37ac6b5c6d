"""Transforms in the pipeline: counts that add up, and restarts that continue exactly."""

from __future__ import annotations

import json

import pytest

from onmt_llm.config.data import CorpusConfig

ROUNDS = "".join(f"a b｟newline｠c d e｟newline｠{'f g h ' * (n % 9)}a\n" for n in range(60))


def ids(batch):
    return batch.tgt_BT.tolist()


@pytest.mark.parametrize(
    ("names", "options"),
    [
        (["deduplicate"], {}),
        (["docify", "filtertoolong"], {"max_context": 2, "src_seq_length": 30}),
        (["chunk"], {"chunk_length": 10, "chunk_overlap": 1}),
        (["uppercase", "truncate"], {"upper_corpus_ratio": 0.5, "truncate_length": 8}),
    ],
)
def test_a_restored_pipeline_continues_exactly_and_its_counts_add_up(write, words, make_pipeline, names, options):
    text = words(50, 3) + ROUNDS
    corpus = CorpusConfig(
        path_src=write("a", text + words(20, 4) + text[:200] + "\n"), transforms=names, options=options
    )
    pipeline = make_pipeline({"a": corpus})
    batches = iter(pipeline)
    states, seen = [], []
    for _ in range(60):
        states.append(json.dumps(pipeline.state_dict()))
        seen.append(ids(next(batches)))
    for start in (3, 17, 31, 44):
        again = make_pipeline({"a": corpus})
        again.load_state_dict(json.loads(states[start]))
        continued = iter(again)
        assert [ids(next(continued)) for _ in range(60 - start)] == seen[start:]
    counts = pipeline.counts["a"]
    assert counts.read + counts.made == counts.kept + sum(counts.dropped.values())
    happened = {"deduplicate": "duplicate", "docify": "merged"}.get(names[0])
    assert counts.dropped[happened] if happened else counts.made or counts.truncated
