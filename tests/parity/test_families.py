"""Every family of Hugging Face models against `transformers`: logits, cached decoding, the way back, CTranslate2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity.test_converters_hf import FALCON, IDS, LLAMA, SIZES, save_model

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.formats.ops import IDENTITY, Offset
from onmt_llm.checkpoint.formats.rules import Rule
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import UnsupportedError
from onmt_llm.generate.open import open_engine
from onmt_llm.nn.inference.fuse import fuse_for_inference
from onmt_llm.nn.kv_cache import KVCache
from onmt_llm.releasing import release

transformers = pytest.importorskip("transformers")

GROUPED = {**LLAMA, "num_key_value_heads": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 300}
MPT = {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "vocab_size": 300}
OPT = {**SIZES, "ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
SCALED = {"embedding_multiplier": 12.0, "attention_multiplier": 0.3, "residual_multiplier": 0.22, "logits_scaling": 3.0}
GEMMA3 = {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16}
BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 300}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def rope(part: float, theta: float = 500.0) -> dict[str, Any]:
    settings = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": part}
    return {"rope_parameters": settings}


def experts(*, of: str = "num_experts", size: str = "moe_intermediate_size", **settings: Any) -> dict[str, Any]:
    """Settings of six experts, of which each token uses three."""
    return {of: 6, "num_experts_per_tok": 3, **({size: 24} if size else {}), **settings}


def layers(kinds: str) -> dict[str, Any]:
    """Settings of layers of these types."""
    types = [f"{kind}_attention" for kind in kinds.split()]
    return {"layer_types": types, "num_hidden_layers": len(types)}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "mistral": ("mistral", {**GROUPED, "sliding_window": 4}),
    "qwen2": ("qwen2", {**GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16, "rms_norm_eps": 1e-5}),
    "qwen3 biases, window, tied": (
        "qwen3",
        {
            **GROUPED,
            **{"head_dim": 12, "attention_bias": True, "tie_word_embeddings": True},
            **{"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
        },
    ),
    "mixtral": ("mixtral", {**GROUPED, **experts(size="", of="num_local_experts")}),
    "mixtral window, tied": (
        "mixtral",
        {**GROUPED, **experts(size="", of="num_local_experts"), "sliding_window": 4, "tie_word_embeddings": True},
    ),
    "qwen3_moe": ("qwen3_moe", {**GROUPED, **experts(norm_topk_prob=True), "head_dim": 16}),
    "qwen3_moe dense layers, window": (
        "qwen3_moe",
        {
            **{**GROUPED, **experts(norm_topk_prob=False), "num_hidden_layers": 4, "attention_bias": True},
            **{"decoder_sparse_step": 2, "mlp_only_layers": [3], "use_sliding_window": True, "sliding_window": 4},
        },
    ),
    "olmoe": ("olmoe", {**GROUPED, **experts(size="")}),
    "olmoe biases, normalised": (
        "olmoe",
        {**LLAMA, **experts(size="", norm_topk_prob=True), "attention_bias": True, "router_aux_loss_coef": 0.5},
    ),
    "qwen2_moe": ("qwen2_moe", {**GROUPED, **experts(shared_expert_intermediate_size=40)}),
    "qwen2_moe dense layers, no biases": (
        "qwen2_moe",
        {**GROUPED, **experts(shared_expert_intermediate_size=20), "mlp_only_layers": [0], "qkv_bias": False},
    ),
    "qwen2_moe windows": (
        "qwen2_moe",
        {
            **{**GROUPED, **experts(shared_expert_intermediate_size=20), "num_hidden_layers": 4},
            **{"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        },
    ),
    "qwen2_moe typed layers": (
        "qwen2_moe",
        {
            **{**GROUPED, **experts(shared_expert_intermediate_size=20), **layers("full sliding")},
            **{"use_sliding_window": True, "sliding_window": 3},
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            **{**GROUPED, **experts(of="num_local_experts", size=""), "num_hidden_layers": 3, "head_dim": 16},
            **{"sliding_window": 4, "rope_parameters": {**YARN, "truncate": False}},
        },
    ),
    "gpt_oss no biases, all windows": (
        "gpt_oss",
        {
            **{**LLAMA, **experts(of="num_local_experts", size=""), **layers("sliding sliding"), **rope(1.0)},
            **{"sliding_window": 3, "attention_bias": False, "head_dim": 8, "num_key_value_heads": 4},
            "tie_word_embeddings": True,
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {**LLAMA, **LATENT, **experts(of="n_routed_experts"), "num_hidden_layers": 3, "first_k_dense_replace": 1},
    ),
    "deepseek_v2 groups, yarn, no narrow queries": (
        "deepseek_v2",
        {
            **{**LLAMA, **LATENT, **experts(of="n_routed_experts"), "q_lora_rank": None, "attention_bias": True},
            **{"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2, "routed_scaling_factor": 4.0},
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
        },
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **{**LLAMA, **LATENT, **experts(of="n_routed_experts"), "num_hidden_layers": 3, "n_shared_experts": 2},
            **{"first_k_dense_replace": 1, "n_group": 3, "topk_group": 2, "num_mtp_layers": 0},
        },
    ),
    "deepseek_v3 yarn, one group": (
        "deepseek_v3",
        {
            **{**LLAMA, **LATENT, **experts(of="n_routed_experts"), "q_lora_rank": None, "norm_topk_prob": False},
            **{"first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "num_mtp_layers": 0, "attention_bias": True},
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "qwen2 window in the last layers": (
        "qwen2",
        {
            **{**GROUPED, "num_hidden_layers": 3, "max_window_layers": 1},
            **{"use_sliding_window": True, "sliding_window": 4},
        },
    ),
    "qwen3 window in the first layer": (
        "qwen3",
        {**GROUPED, **layers("sliding full"), "use_sliding_window": True, "sliding_window": 4, "head_dim": 16},
    ),
    "smollm3": ("smollm3", {**GROUPED, "num_hidden_layers": 4}),
    "smollm3 windows, biases, untied": (
        "smollm3",
        {
            **{**GROUPED, "no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 4},
            **{"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
        },
    ),
    "gemma3_text": ("gemma3_text", {**GROUPED, **GEMMA3, "num_hidden_layers": 6}),
    "gemma3_text scaled": (
        "gemma3_text",
        {
            **{**GROUPED, **GEMMA3, **layers("full sliding sliding"), "attention_bias": True},
            **{"query_pre_attn_scalar": 40, "tie_word_embeddings": False},
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "gemma2 all capped": (
        "gemma2",
        {**GROUPED, **GEMMA3, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.5},
    ),
    "gemma2": (
        "gemma2",
        {
            **{**GROUPED, **GEMMA3, **layers("full sliding")},
            **{"attn_logit_softcapping": None, "final_logit_softcapping": 1.5},
        },
    ),
    "olmo2": ("olmo2", GROUPED),
    "olmo2 biases, tied": ("olmo2", {**LLAMA, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 16}),
    "gemma other": ("gemma", {**GROUPED, "head_dim": 8, "attention_bias": True, "tie_word_embeddings": False}),
    "falcon": ("falcon", {**FALCON, "tie_word_embeddings": True}),
    "phi": ("phi", LLAMA),
    "phi grouped": ("phi", {**GROUPED, **rope(0.25), "hidden_act": "gelu"}),
    "phi3": ("phi3", LLAMA),
    "phi3 grouped, window, part": ("phi3", {**GROUPED, **rope(0.75), "sliding_window": 4}),
    "gpt_neox": ("gpt_neox", LLAMA),
    "gpt_neox sequential": (
        "gpt_neox",
        {**LLAMA, **rope(1.0), "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "gpt2": ("gpt2", GPT2),
    "gpt2 other width": ("gpt2", {**GPT2, "n_inner": 48, "tie_word_embeddings": False, "activation_function": "relu"}),
    "gpt_bigcode": ("gpt_bigcode", GPT2),
    "gpt_bigcode all heads": ("gpt_bigcode", {**GPT2, "multi_query": False, "tie_word_embeddings": False}),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 4}),
    "gptj whole heads": ("gptj", {**GPT2, "rotary_dim": 8, "n_inner": 48}),
    "starcoder2": ("starcoder2", GROUPED),
    "starcoder2 window, no biases": ("starcoder2", {**GROUPED, "use_bias": False, "sliding_window": 4}),
    "stablelm": ("stablelm", {**GROUPED, "use_qkv_bias": True}),
    "stablelm parallel": ("stablelm", {**LLAMA, **rope(0.5), "num_key_value_heads": 4, "use_parallel_residual": True}),
    "mpt": ("mpt", MPT),
    "mpt 6 heads": ("mpt", {**MPT, "d_model": 36, "n_heads": 6, "tie_word_embeddings": False}),
    "opt": ("opt", OPT),
    "opt no biases": (
        "opt",
        {**OPT, "enable_bias": False, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "granite": ("granite", {**GROUPED, **SCALED}),
    "granite biases, tied": (
        "granite",
        {**GROUPED, **SCALED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "bloom": ("bloom", BLOOM),
    "bloom 6 heads": ("bloom", {**BLOOM, "hidden_size": 36, "n_head": 6, "tie_word_embeddings": False}),
    "ernie4_5": ("ernie4_5", {**GROUPED, "head_dim": 16}),
    "ernie4_5 biases, untied": ("ernie4_5", {**GROUPED, "head_dim": 8, "use_bias": True, "tie_word_embeddings": False}),
    "helium": ("helium", {**GROUPED, "head_dim": 8}),
    "helium biases": ("helium", {**GROUPED, "head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    "glm": ("glm", {**GROUPED, "head_dim": 16}),
    "glm no biases": ("glm", {**GROUPED, **rope(1.0), "head_dim": 8, "attention_bias": False}),
    "nemotron": ("nemotron", GROUPED),
    "nemotron biases": ("nemotron", {**GROUPED, **rope(0.25), "attention_bias": True, "mlp_bias": True}),
    "arcee": ("arcee", GROUPED),
    "arcee biases": ("arcee", {**GROUPED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "cohere": ("cohere", {**GROUPED, "logit_scale": 0.25}),
    "cohere normalised heads": ("cohere", {**GROUPED, "use_qk_norm": True, "logit_scale": 0.25}),
    "cohere biases, untied": (
        "cohere",
        {**GROUPED, "attention_bias": True, "tie_word_embeddings": False, "logit_scale": 0.8333333333333334},
    ),
    "cohere2": ("cohere2", {**GROUPED, "num_hidden_layers": 4, "sliding_window": 4, "logit_scale": 0.25}),
    "cohere2 biases, untied": (
        "cohere2",
        {
            **{**LLAMA, **layers("sliding full"), "sliding_window": 3, "logit_scale": 0.6},
            **{"attention_bias": True, "tie_word_embeddings": False},
        },
    ),
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [1.5, 2.5, 4.0, 6.0],
    "original_max_position_embeddings": 8,
}
PHI3_LONG = {**GROUPED, "original_max_position_embeddings": 8}
MODELS |= {
    "llama yarn": ("llama", {**GROUPED, "rope_parameters": YARN}),
    "qwen2 yarn, all settings": (
        "qwen2",
        {
            **GROUPED,
            "rope_parameters": {**YARN, "beta_fast": 2.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.3},
        },
    ),
    "mistral yarn of DeepSeek": (
        "mistral",
        {**GROUPED, "rope_parameters": {**YARN, "beta_fast": 2.0, "mscale": 0.7, "mscale_all_dim": 1.1}},
    ),
    "llama dynamic": (
        "llama",
        {**GROUPED, "max_position_embeddings": 8, "rope_parameters": {"rope_type": "dynamic", "factor": 3.0}},
    ),
    "stablelm dynamic, part": (
        "stablelm",
        {
            **GROUPED,
            "max_position_embeddings": 8,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.5},
        },
    ),
    "llama longrope": ("llama", {**GROUPED, "rope_parameters": {**LONG, "factor": 4.0}}),
    "phi3 longrope": ("phi3", {**PHI3_LONG, "rope_parameters": LONG}),
    "phi3 longrope, part": (
        "phi3",
        {
            **PHI3_LONG,
            "hidden_size": 40,
            "rope_parameters": {**LONG, "partial_rotary_factor": 0.8, "attention_factor": 1.2},
        },
    ),
}
UNREAD = {"model.decoder.embed_positions.weight": 2}
"""Tensors whose first rows nothing reads; they come back as zeros."""
NOT_IN_CTRANSLATE2 = {
    **dict.fromkeys(
        ("mixtral", "qwen3_moe", "olmoe", "qwen2_moe", "gpt_oss", "deepseek_v2", "deepseek_v3"), "moe.experts is 6"
    ),
    **dict.fromkeys(("nemotron", "arcee"), "activation is relu2"),
    "cohere normalised heads": "qk_norm_type is layernorm",
    "gemma2 all capped": "attention_softcap is 0.5, and CTranslate2 does not",
    "olmo2": "norm_position is output, .*qk_norm_over is all_heads",
}
NOT_IN_CTRANSLATE2 |= {
    name: f"rope.scaling is {scaling}"
    for name in MODELS
    for scaling in ("yarn", "dynamic", "longrope")
    if scaling in name
}
"""Families, or models above, that CTranslate2 cannot compute, and a part of the sentence that refuses them."""


def test_every_family_is_here() -> None:
    assert {kind for kind, _ in MODELS.values()} == {one.model_type for one in FAMILIES if one.task == "lm"}


def check_gradients(ours: torch.nn.Module, theirs: torch.nn.Module, rules: list[Rule]) -> None:
    """The loss, and the gradient of every weight; the rules map gradients as they map weights.

    Those of experts are left out: transformers has other names for them than its files. So are its buffers.
    """
    losses = []
    for model in (ours, theirs):
        output = model(IDS)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:]))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    found, expected = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for one in rules:
        used = not found.keys().isdisjoint(one.ours) and expected.keys() >= {*one.theirs}
        if used and not any("moe" in name or "expert" in name for name in one.theirs):
            op = IDENTITY if isinstance(one.op, Offset) else one.op
            gradients = op.forward([expected[name].grad for name in one.theirs])
            for name, gradient in zip(one.ours, gradients, strict=True):
                torch.testing.assert_close(found[name].grad, gradient, rtol=1e-4, atol=1e-5)


FIRST = {kind: name for name, (kind, _) in reversed(MODELS.items())}
"""The first model of each family; the quick tests take only these."""


@pytest.mark.parametrize(
    "name", [name if name in FIRST.values() else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
@torch.no_grad()
def test_family(tmp_path: Path, name: str) -> None:
    kind, settings = MODELS[name]
    theirs = save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    if kind.startswith(
        ("gemma", "nemotron")
    ):  # 1 + weight is exact for weights of a published file, which are bfloat16
        for parameter in theirs.parameters():
            parameter.copy_(parameter.bfloat16())
        theirs.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "ours")
    expected = theirs(IDS).logits
    assert expected.std() > 0.1

    model = load_model(tmp_path / "ours")
    assert (model(IDS) - expected).abs().max() <= 1e-5
    cache, their_cache = KVCache(model.config.decoder_layers), transformers.DynamicCache(config=theirs.config)
    pieces = [IDS[:, :5], *IDS[:, 5:].split(1, dim=1)]
    ours = torch.cat([model(piece, cache=cache) for piece in pieces], dim=1)
    fused = fuse_for_inference(load_model(tmp_path / "ours"))
    cache = KVCache(fused.cache_layers)
    fast = torch.cat([fused(piece, cache=cache) for piece in pieces], dim=1)
    decoded = torch.cat([theirs(piece, past_key_values=their_cache).logits for piece in pieces], dim=1)
    assert (ours - decoded).abs().max() <= 1e-5 and (fast - ours).abs().max() <= 1e-5

    with torch.enable_grad():
        family = next(family for family in FAMILIES if family.model_type == kind)
        check_gradients(model, theirs, family.rules(model.config))

    export_hf(tmp_path / "ours", tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    there, here = theirs.state_dict(), back.state_dict()
    assert there.keys() == here.keys() and back.config.model_type == kind
    for key, tensor in there.items():
        assert torch.equal(tensor[UNREAD.get(key, 0) :], here[key][UNREAD.get(key, 0) :]), key
    assert torch.equal(back(IDS).logits, expected)
    again = convert(tmp_path / "back", tmp_path / "again")
    assert Checkpoint.open(again).config.model == Checkpoint.open(tmp_path / "ours").config.model

    pytest.importorskip("ctranslate2")
    text = "".join(chr(code) for code in range(32, 127))
    reason = NOT_IN_CTRANSLATE2.get(name, NOT_IN_CTRANSLATE2.get(kind))
    if reason is not None:
        with pytest.raises(UnsupportedError, match=reason):
            release(tmp_path / "ours", tmp_path / "released", text=text)
        return
    assert release(tmp_path / "ours", tmp_path / "released", text=text)["verdict"] == "pass"
    engine = open_engine(tmp_path / "released", device="cpu")
    tokens = [engine.codec.vocab[i] for i in IDS[0].tolist()]
    np.testing.assert_allclose(engine.logits(tokens), expected[0].numpy(), atol=1e-5)


OLDER = {
    "gpt2": ("transformer.", "", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"]),
    "gpt_neox": ("lm_head.", "embed_out.", ["gpt_neox.layers.0.attention.bias"]),
    "opt": ("model.decoder.", "decoder.", []),
    "bloom": ("transformer.", "", []),
}


@pytest.mark.parametrize("kind", OLDER)
@torch.no_grad()
def test_older_names_of_tensors(tmp_path: Path, kind: str) -> None:
    """As in the published files of GPT-2, Pythia, OPT and BLOOM, with the masks that they store."""
    theirs = save_model(tmp_path / "hf", kind, {**MODELS[kind][1], **ENDS})
    new, old, masks = OLDER[kind]
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state |= dict.fromkeys(masks, torch.ones(1, 1, 4, 4))
    if theirs.config.tie_word_embeddings:
        del state["lm_head.weight"]
    (tmp_path / "hf/model.safetensors").unlink()
    renamed = {old + name.removeprefix(new) if name.startswith(new) else name: one for name, one in state.items()}
    torch.save(renamed, tmp_path / "hf/pytorch_model.bin")
    convert(tmp_path / "hf", tmp_path / "ours")
    assert (load_model(tmp_path / "ours")(IDS) - theirs(IDS).logits).abs().max() <= 1e-5
