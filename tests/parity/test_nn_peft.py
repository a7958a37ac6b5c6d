"""LoRA against `peft` on a random-weight Llama: gradients and merged weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import tiny
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora, load_lora_state, lora_modules
from onmt_llm.nn.lora.variant import PLAIN, LoRAVariant
from onmt_llm.nn.transformer import Transformer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

LAYERS = ["q_proj", "v_proj", "down_proj"]


def build_pair(variant: LoRAVariant = PLAIN) -> tuple[Transformer, torch.nn.Module]:
    """Our Llama and the same one of transformers under peft, with the same adapter (b not zero)."""
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
            intermediate_size=48, rms_norm_eps=1e-5, initializer_range=0.2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model = Transformer(tiny.llama(vocab_size=50, norm_eps=1e-5))
    names = (("model.", "decoder."), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "mlp_norm"))
    state = {}
    for name, tensor in reference.state_dict().items():
        for old, new in names:
            name = name.replace(old, new)
        state[name] = tensor.clone()
    model.load_state_dict(state)
    add_lora(model, LAYERS, rank=4, alpha=6, variant=variant)
    freeze_all_but_lora(model)
    lora = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        lora_dropout=0.0,
        target_modules=LAYERS,
        bias="none",
        use_dora=variant.dora,
        use_rslora=variant.rslora,
    )
    reference = peft.get_peft_model(reference, lora)
    adapter = {}
    for name, parameter in reference.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))
            adapter[our_name(name)] = parameter.detach()
    load_lora_state(model, adapter)
    return model, reference


def our_name(name: str) -> str:
    name = name.replace("base_model.model.model.", "decoder.")
    for old, new in (("A", "a"), ("B", "b"), ("magnitude_vector", "magnitude")):
        name = name.replace(f"lora_{old}.default.weight", f"lora_{new}")
    return name


@pytest.mark.parametrize("variant", [LoRAVariant(), LoRAVariant(dora=True, rslora=True)], ids=["lora", "dora"])
def test_gradients_equal_peft(variant: LoRAVariant) -> None:
    model, reference = build_pair(variant)
    ids = torch.randint(0, 50, (3, 12))
    logits, expected = model(ids), reference(ids).logits
    assert (logits - expected).abs().max() <= 1e-5
    for scores in (logits, expected):
        F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    theirs = {our_name(n): p.grad for n, p in reference.named_parameters() if p.grad is not None}
    ours = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=0, msg=name)


def test_merged_weights_equal_peft() -> None:
    model, reference = build_pair()
    merged = dict(copy.deepcopy(reference).merge_and_unload().named_parameters())
    for path, module in lora_modules(model).items():
        expected = merged[path.replace("decoder.", "model.") + ".weight"]
        torch.testing.assert_close(module.merged_weight(), expected, atol=1e-6, rtol=0, msg=path)
