"""The transforms of OpenNMT-py 3.5.1 where they are deterministic: at ratios of 0 and 1, and by dictionary.

They run it itself, where ONMT_PY_PYTHON names its Python.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example, side_tokens
from onmt_llm.data.transforms.build import build_transforms
from onmt_llm.data.transforms.fuzzymatch import FuzzyMatchConfig
from onmt_llm.data.transforms.noise import NoiseConfig
from onmt_llm.data.transforms.terminology import TerminologyConfig
from onmt_llm.text.segment import Segment
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_context

ORACLE = os.environ.get("ONMT_PY_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ORACLE, reason="ONMT_PY_PYTHON names no Python with OpenNMT-py 3.5.1"),
]
SCRIPT = Path(__file__).parents[1] / "oracle" / "run_opennmt_transforms.py"
BART = {
    **{"permute_sent_ratio": 0.0, "rotate_ratio": 0.0, "insert_ratio": 0.0, "random_ratio": 0.0, "mask_ratio": 0.0},
    **{"mask_length": "word", "poisson_lambda": 3.0, "replace_length": -1},
}
WORDS = [f"w{n}" for n in range(20)]
# the last word is one token: of a longer one theirs forgets to mask the end
PAIRS = [["the￭", "black", "c￭", "at", "￭,", "sleeps"], ["one"], ["two", "w￭", "ords", "more"]]

Sides = list[tuple[list[str], list[str]]]


def theirs(transform: str, options: dict[str, Any], examples: Sides, vocab: list[str] = WORDS) -> list[list[list[str]]]:
    task = json.dumps({"transform": transform, "options": options, "examples": examples, "vocab": vocab})
    done = subprocess.run([ORACLE, "-W", "ignore", SCRIPT], input=task, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def ours(transform: str, config: Section, examples: Sides, *, text: bool = False) -> list[list[list[str]]]:
    context = make_context(task="seq2seq", training=True, vocab=Vocab(["<unk>", *WORDS], SpecialTokens()))
    built = build_transforms([transform], {config_section(transform): config}, CorpusConfig(), context)
    acting = built if text else built[-1:]
    made = [
        Example(*([Segment(" ".join(side))] if text else [Segment(tokens=list(side))] for side in pair))
        for pair in examples
    ]
    for each in acting:
        made = each.batch(made)
    return [[side_tokens(example.src), side_tokens(example.tgt)] for example in made]


def config_section(transform: str) -> str:
    return transform if transform in ("fuzzymatch", "terminology") else "noise"


@pytest.mark.parametrize(
    "options",
    [
        {"mask_ratio": 1.0, "replace_length": -1},
        {"mask_ratio": 1.0, "replace_length": 1},
        {"mask_ratio": 1.0, "replace_length": 0},
        {"mask_ratio": 1.0, "replace_length": 1, "mask_length": "subword"},
        {"rotate_ratio": 0.0, "permute_sent_ratio": 1.0},
    ],
)
def test_bart(options: dict[str, Any]) -> None:
    # one sentence each, so that there is nothing to permute
    examples: Sides = [(tokens, ["x"]) for tokens in PAIRS]
    assert ours("bart", NoiseConfig(**{**BART, **options}), examples) == theirs("bart", {**BART, **options}, examples)


@pytest.mark.parametrize("name", ["switchout", "tokendrop", "tokenmask"])
def test_noise_at_a_temperature_where_nothing_is_changed(name: str) -> None:
    options = {f"{name}_temperature": 50.0}
    examples: Sides = [(tokens, tokens) for tokens in PAIRS]
    assert ours(name, NoiseConfig(**options), examples) == theirs(name, options, examples)


def test_fuzzymatch(tmp_path: Path) -> None:
    memory = tmp_path / "tm"
    memory.write_text(
        "the black cat sleeps on the mat\tdie schwarze Katze schläft\nI would like some tea\tIch hätte gern Tee\n"
    )
    options = {
        **{"tm_path": str(memory), "fuzzy_corpus_ratio": 1.0, "fuzzy_threshold": 60, "tm_delimiter": "\t"},
        **{"fuzzy_token": "｟fuzzy｠", "fuzzymatch_min_length": 4, "fuzzymatch_max_length": 70},
    }
    sources = ["the black dog sleeps on the mat", "I would like some coffee", "nothing of the kind", "a"]
    examples: Sides = [(source.split(), ["x"]) for source in sources]
    made = ours("fuzzymatch", FuzzyMatchConfig(**options), examples, text=True)
    expected = theirs("fuzzymatch", options, examples)
    # theirs glues the token to the words on both sides
    spaced = [[" ".join(src).replace("｟fuzzy｠", " ｟fuzzy｠ ").split(), tgt] for src, tgt in expected]
    assert made == spaced and sum("｟fuzzy｠" in src for src, _ in made) == 2


def test_terminology(tmp_path: Path) -> None:
    """With the same lemmas from the same spaCy models; theirs looks at every second example, and writes lower case."""
    spacy = pytest.importorskip("spacy")
    from spacy.lookups import Lookups

    lemmas = {"en": {"cats": "cat", "mats": "mat"}, "de": {"Katzen": "Katze", "Matten": "Matte"}}
    for language, table in lemmas.items():
        pipeline, lookups = spacy.blank(language), Lookups()
        lemmatizer = pipeline.add_pipe("lemmatizer", config={"mode": "lookup"})
        lookups.add_table("lemma_lookup", table)
        lemmatizer.initialize(lookups=lookups)
        pipeline.to_disk(tmp_path / language)
    terms = tmp_path / "terms"
    terms.write_text("cat\tKatze\nmat\tMatte\n")
    options = {
        **{"termbase_path": str(terms), "term_corpus_ratio": 1.0, "term_example_ratio": 0.5},
        **{f"{side}_spacy_language_model": str(tmp_path / name) for side, name in (("src", "en"), ("tgt", "de"))},
        **{"src_term_stoken": "｟src_term_start｠", "tgt_term_stoken": "｟tgt_term_start｠"},
        **{"tgt_term_etoken": "｟tgt_term_end｠", "term_source_delimiter": "｟fuzzy｠"},
    }
    texts = [("the cats sat on mats today", "die Katzen auf Matten"), ("x", "y"), ("cats sat", "niemand"), ("x", "y")]
    examples: Sides = [(src.split(), tgt.split()) for src, tgt in texts]
    made = ours("terminology", TerminologyConfig(**options), examples, text=True)
    expected = theirs("terminology", options, examples)
    assert [" ".join(src).lower() for src, _ in made] == [" ".join(src).lower() for src, _ in expected]
    assert "｟tgt_term_start｠" in made[0][0]
