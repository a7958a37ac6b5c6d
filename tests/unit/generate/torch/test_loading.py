"""Number formats of the torch engine that some models or processors do not allow."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from onmt_llm.checkpoint.store import seal
from onmt_llm.config.model import FeatureConfig
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.generate.open import open_engine
from onmt_llm.generate.torch import loading
from onmt_llm.nn.inference.packed import has_bf16_kernels


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "model", tiny.llama(hidden_size=64, ffn_size=128))


def test_an_ensemble_has_one_vocabulary_of_each_source_feature(tmp_path: Path) -> None:
    model = tiny.seq2seq(src_features=[FeatureConfig(vocab_size=3, size=4)], feat_merge="concat")
    paths = [tiny.write_checkpoint(tmp_path / name, model) for name in ("one", "two")]
    open_engine(paths, device="cpu")
    (paths[1] / "src_feat0_vocab.txt").write_text("<unk>\nf1\nf0\n")
    seal(paths[1])
    with pytest.raises(ConfigError, match="one kind and vocabulary"):
        open_engine(paths, device="cpu")


def test_4_bits_need_instructions_for_bf16(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "has_bf16_kernels", lambda: False)
    with pytest.raises(UnsupportedError, match="int4 needs a CPU"):
        open_engine(model, device="cpu", compute_type="int4")


@pytest.mark.skipif(not has_bf16_kernels(), reason="the processor has no instructions for bf16")
def test_a_model_in_4_bits_answers(model: Path) -> None:
    engine = open_engine(model, device="cpu", compute_type="int4")
    assert engine.logits(["w1", "w2"]).shape == (2, 24)
