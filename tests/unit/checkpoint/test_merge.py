"""Merging adapters into their base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.merge import concat_lora, merge_lora
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.errors import CheckpointError

IDS = torch.tensor([[1, 5, 7, 9, 3]])
Make = Callable[..., Checkpoint]


@torch.no_grad()
def logits(path: Path, **options: object) -> torch.Tensor:
    return load_model(path, **options)(IDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("embedding", [False, True])
def test_merged_is_unmerged(tmp_path: Path, make_model: Make, make_adapter: Make, embedding: bool) -> None:
    base = make_model()
    adapter = make_adapter(base, embedding=embedding)
    merge_lora(base.path, adapter.path, tmp_path / "merged")
    merged = Checkpoint.open(tmp_path / "merged")
    assert merged.config.adapter is None and merged.config.template == "alpaca"
    assert merged.names() == base.names()
    assert [file.name for file in merged.files()] == ["vocab.txt"]
    plain, adapted = logits(base.path), logits(adapter.path)
    assert (plain - adapted).abs().max() > 0.1
    torch.testing.assert_close(logits(merged.path), adapted, atol=1e-4, rtol=1e-4)


def test_concat_holds_both_and_computes_the_same(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    concat_lora(base.path, adapter.path, tmp_path / "step_4000.concat.pt")
    both = Checkpoint.open(tmp_path / "step_4000.concat")
    assert both.has_adapter and not both.is_adapter
    assert both.names() == base.names() + adapter.names()
    assert both.fingerprint == base.fingerprint
    assert torch.equal(logits(both.path), logits(adapter.path))
    merge_lora(base.path, both.path, tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), logits(both.path), atol=1e-4, rtol=1e-4)


def test_another_base_is_refused_and_both_are_named(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    adapter = make_adapter(make_model())
    other = make_model("other", seed=3)
    with pytest.raises(CheckpointError) as caught:
        merge_lora(other.path, adapter.path, tmp_path / "merged")
    assert "other" in str(caught.value) and "base" in str(caught.value)
    assert other.fingerprint[:16] in str(caught.value) and not (tmp_path / "merged").exists()


def test_swapped_arguments_are_said(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    adapter = make_adapter(base)
    with pytest.raises(CheckpointError, match="swapped"):
        merge_lora(adapter.path, base.path, tmp_path / "merged")
    with pytest.raises(CheckpointError, match="must be an adapter"):
        merge_lora(base.path, base.path, tmp_path / "merged")


def test_layers_that_do_not_fit_are_all_listed(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    with CheckpointWriter(tmp_path / "odd", make_adapter(base).config) as writer:
        writer.add("decoder.layers.0.self_attn.q_proj.lora_a", torch.zeros(2, 15))
        writer.add("decoder.layers.0.self_attn.q_proj.lora_b", torch.zeros(16, 2))
        writer.add("decoder.layers.9.self_attn.q_proj.lora_a", torch.zeros(2, 16))
    with pytest.raises(CheckpointError, match=r"layers\.0.*\n.*layers\.9"):
        merge_lora(base.path, tmp_path / "odd", tmp_path / "merged")


def test_merging_ignores_quantised_training(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    """Layers that were 8-bit while the adapter was trained keep the base's full precision."""
    base = make_model()
    adapter = make_adapter(base)
    spec = adapter.config.adapter
    assert spec is not None
    spec = spec.model_copy(update={"quant_layers": ["up_proj"], "quant_type": "int8"})
    with CheckpointWriter(tmp_path / "eight", adapter.config.model_copy(update={"adapter": spec})) as writer:
        for name, tensor in adapter.tensors():
            writer.add(name, tensor)
        writer.add_file(base.path / "vocab.txt", "vocab.txt")
    merge_lora(base.path, tmp_path / "eight", tmp_path / "merged")
    name = "decoder.layers.0.mlp.up_proj.weight"
    assert torch.equal(Checkpoint.open(tmp_path / "merged").tensor(name), base.tensor(name))


def test_changes_that_bf16_rounds_away_are_said_and_fp32_keeps_them(
    tmp_path: Path, make_model: Make, make_adapter: Make, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_model()
    model = plain.config.model.model_copy(update={"dtype": "bf16"})
    with CheckpointWriter(tmp_path / "bf16", plain.config.model_copy(update={"model": model})) as writer:
        for name, tensor in plain.tensors():
            writer.add(name, tensor.bfloat16())
        writer.add_file(plain.path / "vocab.txt", "vocab.txt")
    base = Checkpoint.open(tmp_path / "bf16")
    large = make_adapter(base)
    with CheckpointWriter(tmp_path / "small", large.config) as writer:
        for name, tensor in large.tensors():
            writer.add(name, tensor * (2e-5 if name.endswith("lora_b") else 1))
        writer.add_file(base.path / "vocab.txt", "vocab.txt")
    merge_lora(base.path, large.path, tmp_path / "large_merged")
    assert not caplog.records
    merge_lora(base.path, tmp_path / "small", tmp_path / "rounded")
    assert "-dtype fp32 keeps all of it" in caplog.text
    caplog.clear()
    merge_lora(base.path, tmp_path / "small", tmp_path / "exact", dtype="fp32")
    assert not caplog.records and Checkpoint.open(tmp_path / "exact").config.model.dtype == "fp32"
    trained = logits(tmp_path / "small", dtype="fp32")
    torch.testing.assert_close(logits(tmp_path / "exact"), trained)
    assert (logits(tmp_path / "rounded", dtype="fp32") - trained).abs().max() > 1e-4
