"""Encoder-decoder models: adapters, 8-bit layers, freezing, dropout schedules, log messages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.merge import merge_lora
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import ConfigError
from onmt_llm.generate.open import open_engine
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora
from onmt_llm.nn.quantized import quantize
from onmt_llm.nn.transformer import Transformer, set_dropout
from onmt_llm.releasing import release
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.setup.model import freeze_stacks


@pytest.fixture
def model() -> Transformer:
    config = ModelConfig(
        encoder_layers=2, decoder_layers=2, vocab_size=16, hidden_size=16, heads=2, ffn_size=24, share_embeddings=True
    )
    model = Transformer(config)
    init_weights(model, glorot=True)
    return model


def batch() -> Batch:
    source, real = torch.randint(4, 16, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    target = torch.randint(4, 16, (2, 7))
    return Batch(source, real, target[:, :-1], target[:, 1:], None, 12, 2)


def touched(model: Transformer) -> set[str]:
    batch_loss(model, batch()).scaled.backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


NAMES = {
    "cross_attn.q_proj": {f"decoder.layers.{i}.cross_attn.q_proj" for i in range(2)},
    "q_proj": {
        *(f"{stack}.layers.{i}.self_attn.q_proj" for stack in ("encoder", "decoder") for i in range(2)),
        *(f"decoder.layers.{i}.cross_attn.q_proj" for i in range(2)),
    },
    "encoder.layers.1.mlp.up_proj": {"encoder.layers.1.mlp.up_proj"},
}


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("name", list(NAMES))
def test_a_name_adapts_its_layers_and_nothing_else(model: Transformer, name: str, quantised: bool) -> None:
    if quantised:
        quantize(model, [name, "down_proj"], "int8")
    assert set(add_lora(model, [name], rank=2, alpha=4.0)) == NAMES[name]
    freeze_all_but_lora(model)
    assert touched(model) == {f"{path}.{part}" for path in NAMES[name] for part in ("lora_a", "lora_b")}


@pytest.mark.parametrize("embedding", [False, True])
def test_a_merged_model_computes_what_the_adapted_one_does(copy_task: Any, embedding: bool) -> None:
    folder = copy_task.folder
    copy_task.run("base", run={"save_model": str(folder / "base"), "train_steps": 2})
    lora = {"lora_layers": ["context_attn.linear_query", "w_1"], "lora_rank": 2, "lora_embedding": embedding}
    run = {"save_model": str(folder / "ad"), "train_from": str(folder / "base_step_2"), "train_steps": 5}
    path = copy_task.run("ad", lora=lora, run=run).checkpoint
    spec = Checkpoint.open(path).config.adapter
    assert spec is not None and spec.layers == ["cross_attn.q_proj", "up_proj"]
    merge_lora(folder / "base_step_2", path, folder / "merged")
    ids = torch.randint(0, 16, (3, 6)), torch.randint(0, 16, (3, 5))
    adapted, merged = load_model(path), load_model(folder / "merged")
    torch.testing.assert_close(merged(*ids), adapted(*ids), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged(*ids), load_model(folder / "base_step_2")(*ids), atol=1e-4)
    release(str(folder / "merged"), str(folder / "ct2"), format="ctranslate2", quantization="float32")
    engines = [open_engine(folder / name) for name in ("merged", "ct2")]
    prompts = [["w1", "w2", "w3"], ["w4"]]
    answers = [[best[0].tokens for best in e.generate(prompts, GenerationConfig(max_length=9))] for e in engines]
    assert answers[0] == answers[1]


def test_eight_bit_layers_are_trained_around(copy_task: Any) -> None:
    folder = copy_task.folder
    copy_task.run("base", run={"save_model": str(folder / "base"), "train_steps": 2})
    run = {"save_model": str(folder / "q"), "train_from": str(folder / "base_step_2"), "train_steps": 2}
    layers = {"quant_layers": ["cross_attn.k_proj", "w_1"], "quant_type": "int8"}
    path = copy_task.run("q", lora={"lora_layers": ["cross_attn.q_proj"]}, quantization=layers, run=run).checkpoint
    assert Checkpoint.open(path).config.adapter.quant_layers == ["cross_attn.k_proj", "up_proj"]


def test_frozen_stacks_keep_their_weights_and_their_embeddings_learn(copy_task: Any) -> None:
    shape = copy_task.config().architecture.model_dump(exclude_unset=True)
    for side in ("encoder", "decoder"):
        run = {"save_model": str(copy_task.folder / side), "save_checkpoint_steps": 1, f"freeze_{side}": True}
        copy_task.run(side, architecture=shape, run={**run, "train_steps": 2})
        first, second = (copy_task.tensors(f"{side}_step_{step}") for step in (1, 2))
        same = {name for name in first if torch.equal(first[name], second[name])}
        assert same >= {name for name in first if name.startswith((f"{side}.layers.", f"{side}.norm."))}
        assert not same & {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
        other = "decoder" if side == "encoder" else "encoder"
        assert f"{other}.layers.0.self_attn.q_proj.weight" not in same


def test_freezing_what_cannot_be_frozen_is_refused(copy_task: Any, tiny_model: Transformer) -> None:
    with pytest.raises(ConfigError, match="freeze_encoder needs"):
        freeze_stacks(tiny_model, encoder=True, decoder=False)
    folder = copy_task.folder
    copy_task.run("base", run={"save_model": str(folder / "base"), "train_steps": 1})
    with pytest.raises(ConfigError, match="must be off with LoRA"):
        copy_task.run(
            lora={"lora_layers": ["q_proj"]}, run={"train_from": str(folder / "base_step_1"), "freeze_decoder": True}
        )


def test_dropout_reaches_every_part(model: Transformer) -> None:
    set_dropout(model, 0.3, 0.2)
    rates = {type(module).__name__: set() for module in model.modules() if hasattr(module, "dropout")}
    for module in model.modules():
        if hasattr(module, "dropout"):
            rates[type(module).__name__].add(module.dropout)
    assert rates == {"Stack": {0.3}, "Block": {0.3}, "FeedForward": {0.3}, "Attention": {0.2}}


def test_the_log_counts_source_and_target(copy_task: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    with caplog.at_level("INFO"):
        copy_task.run(
            batching={"batch_size": 600, "bucket_size": 600},
            run={"save_model": str(copy_task.folder / "toy"), "train_steps": 1},
            logging={"progress": "line", "report_every": 1},
        )
    words = sum(len(line.split()) for line in (copy_task.folder / "train.src").read_text().splitlines())
    line = next(message for message in caplog.messages if message.startswith("Step 1/1; acc: "))
    assert f"; sents: 600; bsz: {words}/{words + 600}/600; " in line
    source, target = line.split("600; ")[-1].split(" tok/s")[0].split("/")
    assert int(target) / int(source) == pytest.approx((words + 600) / words, rel=0.01)
