"""`Blockwise`: hidden states and logits equal those of the whole model, in families of different layouts."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from onmt_llm.checkpoint.files import blocks
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import UnsupportedError
from onmt_llm.releasing.blockwise import Blockwise

WINDOWS = [[1, 5, 7, 9, 2, 11], [1, 8, 8, 20], [1, 3, 4, 5, 6, 7]]
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**tiny.LLAMA, "tie_embeddings": True},
    "bf16": {**tiny.LLAMA, "dtype": "bf16"},
    "windows": {**tiny.LLAMA, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt": {"position": "learned", "max_position": 8, "lm_head_bias": True, "attn_bias": True, "logit_softcap": 2.0},
    "falcon": {"position": "alibi", "parallel_residual": True, "shared_norm": True, "logit_scale": 0.5},
    "t5": {"position": "t5", "relative_shared": True, "norm": "rmsnorm", "embed_norm": True},
    "post": {"norm_position": "post", "position": "sinusoidal", "scale_embeddings": True},
    "experts": {**tiny.LLAMA, "moe": {"experts": 3, "experts_per_token": 2}},
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_block_by_block_computes_what_the_whole_model_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 400)  # of the embedding and the output layer, several
    path = tiny.write_checkpoint(tmp_path / "model", tiny.config(**MODELS[name]))
    model, blockwise = load_model(path, "fp32"), Blockwise(Checkpoint.open(path))
    for ids, hidden_TD in zip(WINDOWS, blockwise.run(WINDOWS), strict=True):
        whole_TD = model.decode(torch.tensor([ids]))[0]
        torch.testing.assert_close(hidden_TD, whole_TD, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(blockwise.logits(hidden_TD), model.logits(whole_TD), rtol=1e-6, atol=1e-6)


def test_a_watcher_sees_the_inputs_of_the_linear_layers(tmp_path: Path) -> None:
    path = tiny.write_checkpoint(tmp_path / "model", tiny.llama())
    model, seen, expected = load_model(path), {}, {}
    Blockwise(Checkpoint.open(path)).run(WINDOWS, watch=lambda name, x_NC: seen.setdefault(name, []).append(x_NC))
    for name, layer in model.decoder.named_modules(prefix="decoder"):
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(
                lambda _, inputs, __, name=name: expected.setdefault(name, []).append(inputs[0][0])
            )
    with torch.inference_mode():
        for ids in WINDOWS:
            model.decode(torch.tensor([ids]))
    assert seen.keys() == expected.keys() and len(seen) == 14
    for name, inputs in seen.items():
        torch.testing.assert_close(torch.cat(inputs), torch.cat(expected[name]), rtol=1e-6, atol=1e-6)


def test_the_whole_model_is_never_loaded(tmp_path: Path) -> None:
    path = tiny.write_checkpoint(tmp_path / "model", tiny.llama(decoder_layers=6))
    checkpoint, counts = Checkpoint.open(path), []

    def loaded() -> int:
        return sum(type(one) is nn.Linear and not one.weight.is_meta for one in gc.get_objects())

    def watch(name: str, x_NC: torch.Tensor) -> None:
        if name.endswith("down_proj"):
            counts.append(loaded() - before)

    gc.collect()
    before = loaded()  # models of other tests
    Blockwise(checkpoint).run(WINDOWS[:1], watch=watch)
    assert counts == [7] * 6  # q, k, v, o, gate, up, down of each block


def test_a_model_with_an_encoder_is_refused(tmp_path: Path) -> None:
    path = tiny.write_checkpoint(tmp_path / "model", tiny.seq2seq())
    with pytest.raises(UnsupportedError, match="has an encoder"):
        Blockwise(Checkpoint.open(path))
