"""One AdamW update of LoRA against transformers and peft: loss, gradients and weights."""

from __future__ import annotations

import pytest
import torch

import tiny
from onmt_llm.config.learning import OptimConfig
from onmt_llm.config.train import RunConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora, lora_state
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.loop import train_loop
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.metrics.reporter import Reporter
from onmt_llm.training.optim.build import build_optimizer
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.optim.schedule import build_schedule
from onmt_llm.training.parallel import TrainingModule
from onmt_llm.training.process.dist import World
from onmt_llm.training.state import Progress

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]
SHAPE = {"hidden_size": 32, "vocab_size": 61}


def reference_model() -> torch.nn.Module:
    config = transformers.LlamaConfig(
        **SHAPE,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    lora = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, target_modules=LAYERS)
    torch.manual_seed(0)
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), lora)


def our_model(reference: torch.nn.Module) -> Transformer:
    """The same model and adapter, from the reference's tensors."""
    model = Transformer(tiny.llama(**SHAPE, norm_eps=1e-5))
    add_lora(model, LAYERS, rank=3, alpha=6.0)
    freeze_all_but_lora(model)
    theirs = {our_name(name): tensor for name, tensor in reference.state_dict().items()}
    model.load_state_dict(theirs)
    return model


def our_name(name: str) -> str:
    for old, new in {
        "base_model.model.": "",
        "model.": "decoder.",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "mlp_norm",
        "base_layer": "base",
        "lora_A.default.weight": "lora_a",
        "lora_B.default.weight": "lora_b",
    }.items():
        name = name.replace(old, new, 1)
    return name


def make_batch() -> Batch:
    torch.manual_seed(1)
    tgt = torch.randint(61, (3, 9))
    labels = tgt.roll(-1, 1)
    labels[:, -1] = -100
    labels[0, :5] = -100
    return Batch(None, None, tgt, labels, None, int((labels != -100).sum()), 3)


def shifted(labels_BT: torch.Tensor) -> torch.Tensor:
    """Labels as transformers wants them: at the position of the token itself."""
    labels = labels_BT.roll(1, 1)
    labels[:, 0] = -100
    return labels


def test_one_adamw_update_of_lora_equals_transformers_and_peft() -> None:
    reference, batch = reference_model(), make_batch()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model = our_model(reference)
    optim = OptimConfig(learning_rate=1e-3, weight_decay=0.01, max_grad_norm=0.0)

    expected = reference(batch.tgt_BT, labels=shifted(batch.labels_BT)).loss
    expected.backward()
    loss = batch_loss(model, batch)
    torch.testing.assert_close(loss.total / loss.tokens, expected.detach(), rtol=1e-6, atol=1e-6)
    (loss.scaled / loss.tokens).backward()
    gradients = {our_name(name): p.grad for name, p in reference.named_parameters() if p.requires_grad}
    ours = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert ours.keys() == gradients.keys()
    for name in gradients:
        torch.testing.assert_close(ours[name], gradients[name], rtol=1e-4, atol=1e-6)
    model.zero_grad()

    torch.optim.AdamW(reference.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01).step()
    components = TrainingComponents(
        module=TrainingModule(model),
        optimizer=build_optimizer(model, optim),
        schedule=build_schedule(optim, train_steps=1, hidden_size=32),
        precision=Precision(weights=torch.float32),
        world=World(rank=0, size=1, device=torch.device("cpu")),
        run=RunConfig(train_steps=1),
        optim=optim,
    )
    reporter = Reporter(start_step=0, train_steps=1, progress="none")
    train_loop(components, [batch], Progress(), reporter=reporter, save=lambda progress: None)
    stepped = {our_name(name): p.detach() for name, p in reference.named_parameters() if p.requires_grad}
    for name, tensor in lora_state(model).items():
        torch.testing.assert_close(tensor, stepped[name], rtol=1e-4, atol=1e-6)
