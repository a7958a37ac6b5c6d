"""Parity with eole 0.6.4: tests/data/eole has models that it saved and the logits that it computes (tests/oracle)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError, UnsupportedError

DATA = Path(__file__).parents[1] / "data" / "eole"
NAMES = sorted(file.parent.name for file in DATA.glob("*/config.json"))
WEIGHTS = "model.00.safetensors"


@torch.no_grad()
def logits(path: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model = load_model(path)
    if "src" not in batch:
        return model(batch["tgt"])
    return model(batch["src"], batch["tgt"], src_mask_BS=batch["src"] != 1)


@pytest.mark.parametrize("name", NAMES)
def test_its_models_keep_their_logits(name: str, tmp_path: Path) -> None:
    ours = Checkpoint.open(convert(DATA / name, tmp_path / "ours"))
    with np.load(DATA / name / "batch.npz") as arrays:
        batch = {key: torch.from_numpy(array) for key, array in arrays.items()}
    torch.testing.assert_close(logits(ours.path, batch), batch.pop("logits"), atol=1e-5, rtol=1e-5)
    specials = ours.config.specials
    assert (specials.unk, specials.bos, specials.eos, specials.pad) == ("<unk>", "<s>", "</s>", "<blank>")
    assert ours.config.source == f"eole model, {name}"


def changed(name: str, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a model with other settings."""
    shutil.copytree(DATA / name, folder, ignore=shutil.ignore_patterns("batch.npz"))
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(settings["model"])
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("llama", {"architecture": "vision_transformer_lm"}, "but is vision_transformer_lm"),
        ("llama", {"decoder": {"decoder_type": "rnn"}}, "decoder_type in config.json must be transformer"),
        ("llama", {"q_gating": True}, "q_gating in config.json must be false, but is true"),
        ("llama", {"something": 1}, "there is also something"),
        ("llama", {"rope_config": {"scaling_type": "yarn"}, "decoder": {}}, "but is yarn"),
        ("llama", {"rope_config": {"interleave_local": 6}, "decoder": {}}, "interleave_local in config.json"),
        ("llama", {"layer_types": ["linear_attention"]}, "but one is linear_attention"),
        ("experts", {"num_shared_experts": 1}, "shared_expert_gate in config.json must be true"),
        (
            "learned",
            {"position_encoding_type": "Learned", "mlp_activation_fn": "quick_gelu", "decoder": {}},
            "quick_gelu",
        ),
        ("translation", {"encoder": {"norm_eps": 0.1}}, "norm_eps must be the same in both stacks"),
        ("translation", {"relative_positions_buckets": 8}, "relative_positions_buckets in config.json"),
    ],
)
def test_what_is_not_expressed_is_refused_by_name(name: str, change: Any, words: str, tmp_path: Path) -> None:
    model = changed(name, tmp_path / "theirs", lambda settings: settings.update(change))
    with pytest.raises(UnsupportedError, match=words):
        convert(model, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_weights_that_are_no_whole_model_are_refused(tmp_path: Path) -> None:
    tensors = load_file(DATA / "llama" / WEIGHTS)
    first = next(name for name in tensors if "linear_query" in name)
    cases: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("lora", {first.replace("weight", "lora_A"): torch.ones(2, 2)}, UnsupportedError, "LoRA weights"),
        ("codes", {first: tensors[first].to(torch.int8)}, UnsupportedError, "are quantised"),
        ("scaled", {"decoder.transformer_layers.0.layer_scalar": torch.tensor([2.0])}, UnsupportedError, "is not 1"),
        ("more", {"decoder.other.weight": torch.ones(2)}, CheckpointError, "not used: decoder.other.weight"),
    ]
    for name, others, error, words in cases:
        folder = changed("llama", tmp_path / name, lambda settings: None)
        save_file({**tensors, **others}, folder / WEIGHTS)
        with pytest.raises(error, match=words):
            convert(folder, tmp_path / "ours")
    folder = changed("llama", tmp_path / "less", lambda settings: None)
    save_file({name: tensor for name, tensor in tensors.items() if name != first}, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"missing: {first}"):
        convert(folder, tmp_path / "ours")
    (folder / "vocab.json").unlink()
    with pytest.raises(UnsupportedError, match="an eole model without its"):
        convert(folder, tmp_path / "ours", source="auto")
