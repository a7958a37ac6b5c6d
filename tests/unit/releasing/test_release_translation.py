"""`release` of encoder-decoder models: bounds, figures, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, DataError, UnsupportedError
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.releasing import ct2_spec, ctranslate2, release, verify_translations

VOCAB = tiny.tokens(64)
TEXT = "\n".join(" ".join(VOCAB[3 + (7 * i * n) % 61] for i in range(12)) for n in range(1, 9))
CONFIG = tiny.seq2seq(
    vocab_size=64, hidden_size=64, ffn_size=96, norm="rmsnorm", share_embeddings=True, tie_embeddings=True
)


def write_checkpoint(directory: Path, config: ModelConfig = CONFIG, *, scale: float = 0.2, **changes: Any) -> Path:
    return tiny.write_checkpoint(directory, config, VOCAB, seed=1, scale=scale, **changes)


@pytest.mark.parametrize("quantization", list(verify_translations.BOUNDS))
def test_every_quantization_passes_its_bounds(tmp_path: Path, quantization: str) -> None:
    report = release(write_checkpoint(tmp_path / "m"), tmp_path / "out", quantization=quantization, text=TEXT)
    assert report == json.loads((tmp_path / "out" / "release_report.json").read_text())
    figures = report["figures"]
    assert report["verdict"] == "pass" and verify_translations.BOUNDS[quantization].items() <= report["bounds"].items()
    assert figures["n_sentences"] == 8 and figures["n_tokens"] > 8
    assert 0 < figures["mean_abs_dlogp"] <= figures["max_abs_dlogp"] < 1
    # a random model's answers do not end, and diverge for good after the first token that differs
    assert figures["greedy_agreement"] >= {"float32": 1, "int16": 1, "float16": 0.75, "bfloat16": 0.75}.get(
        quantization, 0
    )
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.bin", "config.json", "shared_vocabulary.json", "config.yaml", "vocab.txt"} < names


def test_matrices_that_are_one_are_stored_once(tmp_path: Path) -> None:
    sizes = []
    for shared in (True, False):
        config = CONFIG.model_copy(update={"share_embeddings": shared, "tie_embeddings": shared})
        release(write_checkpoint(tmp_path / f"m{shared}", config), tmp_path / f"out{shared}", verify="off")
        sizes.append((tmp_path / f"out{shared}" / "model.bin").stat().st_size)
    assert sizes[1] - sizes[0] >= 0.99 * 2 * 64 * 64 * 4
    assert sizes[1] < 2 * 5000 * 64 * 4  # one table of positions for both sides


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_strict_publishes_nothing_that_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    build = ctranslate2.build_spec
    wrong = {"scale_embeddings": True}
    monkeypatch.setattr(ctranslate2, "build_spec", lambda config: build(config.model_copy(update=wrong)))
    with pytest.raises(CheckpointError, match=r"abs_dlogp is .* \(at most .*Nothing was published"):
        release(write_checkpoint(tmp_path / "m", scale=0.5), tmp_path / "out", quantization=quantization, text=TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_bundled_text_is_compared_on_sentences(tmp_path: Path) -> None:
    figures = release(write_checkpoint(tmp_path / "m"), tmp_path / "out")["figures"]
    assert figures["n_sentences"] > 80
    with pytest.raises(DataError, match="at least one sentence"):
        release(tmp_path / "m", tmp_path / "out2", text=" \n")


def test_a_model_with_few_positions_is_compared_within_them(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"position": "learned", "max_position": 12})
    report = release(write_checkpoint(tmp_path / "m", config), tmp_path / "out", text=TEXT)
    assert report["verdict"] == "pass"


def test_the_figures_are_right() -> None:
    class Other:
        def score(self, targets: Any, *, sources: Any) -> list[list[float]]:
            return [[np.log(0.25), np.log(0.5)], [float("nan")]]

        def generate(self, sources: Any, options: Any) -> list[list[Hypothesis]]:
            return [[Hypothesis(["a"], "a", 0.0, "stop")], [Hypothesis(["c"], "c", 0.0, "stop")]]

    answers = [Hypothesis([token], token, 0.0, "stop") for token in "ab"]
    model = verify_translations.ReferenceTranslations(
        [["x"]] * 2, answers, [["a", "</s>"], ["b"]], [[np.log(0.5)] * 2, [0.0]], GenerationConfig()
    )
    figures = verify_translations.compare_translations(model, Other())  # type: ignore[arg-type]
    assert figures["max_abs_dlogp"] == float("inf") and figures["greedy_agreement"] == 0.5
    assert figures["n_tokens"] == 3 and figures["perplexity_model"] == pytest.approx(4 ** (1 / 3))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position": "alibi"}, "position is alibi, which CTranslate2's encoders do not know"),
        ({"position": "none"}, "position is none"),
        ({"qk_norm": True}, "qk_norm is true"),
        ({"sliding_window": 8}, "sliding_window is 8"),
    ],
)
def test_what_the_format_cannot_express_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    model = write_checkpoint(tmp_path / "m", CONFIG.model_copy(update=changes))
    with pytest.raises(UnsupportedError, match=named):
        release(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_older_versions_of_the_library_have_one_table_of_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ct2_spec, "HAS_TABLE_PER_LAYER", False)
    model = write_checkpoint(tmp_path / "m", CONFIG.model_copy(update={"position": "t5"}))
    with pytest.raises(UnsupportedError, match=r"relative_shared is false, and CTranslate2 before 4\.8\.3"):
        release(model, tmp_path / "out")


def test_the_source_vocabulary_has_the_length_of_its_embedding(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"share_embeddings": False, "src_vocab_size": 50})
    with pytest.raises(CheckpointError, match="has 64 tokens for 50 rows"):
        release(write_checkpoint(tmp_path / "m", config), tmp_path / "out")


def test_targets_must_have_a_start(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no token starts its targets"):
        release(write_checkpoint(tmp_path / "m", specials=SpecialTokens(bos=None)), tmp_path / "out")
