"""litgpt's layout, made of models of transformers by litgpt's names, gives the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from parity.test_converters_hf import FALCON, IDS, LLAMA3, save_model
from parity.test_families import ENDS, MODELS

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.load import load_model
from onmt_llm.errors import CheckpointError, UnsupportedError

transformers = pytest.importorskip("transformers")

NAMES = {
    "llama": {
        **{"model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f", "lm_head": "lm_head"},
        **{"model.layers": "transformer.h", "input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"},
        **{"self_attn.o_proj": "attn.proj", "self_attn.q_norm": "attn.norm_q", "self_attn.k_norm": "attn.norm_k"},
        **{"mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj"},
        **{"self_attn.dense": "attn.proj", "model.final_layernorm": "transformer.ln_f"},
        **{"mlp.fc1": "mlp.fc", "mlp.fc2": "mlp.proj"},
    },
    "gpt_neox": {
        **{"gpt_neox.embed_in": "transformer.wte", "gpt_neox.final_layer_norm": "transformer.ln_f"},
        **{"gpt_neox.layers": "transformer.h", "input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"},
        **{"attention.dense": "attn.proj", "mlp.dense_h_to_4h": "mlp.fc", "mlp.dense_4h_to_h": "mlp.proj"},
        "attention.query_key_value": "attn.attn",
    },
    "falcon": {
        **{"transformer.word_embeddings": "transformer.wte", "input_layernorm": "norm_1"},
        **{"self_attention.dense": "attn.proj", "self_attention.query_key_value": "attn.attn"},
        **{"mlp.dense_h_to_4h": "mlp.fc", "mlp.dense_4h_to_h": "mlp.proj"},
    },
}
LLAMA = {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False, "rotary_percentage": 1.0}
LLAMA |= {"parallel_residual": False, "n_query_groups": 2}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 8}
NEOX = {"rope_base": 10000, "rotary_percentage": 0.25}
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", "llama", MODELS["llama"][1], LLAMA),
    "llama3": (
        "llama",
        "llama",
        {**MODELS["llama"][1], "rope_parameters": LLAMA3},
        {**LLAMA, "rope_base": 500000, "rope_adjustments": SCALING},
    ),
    "mistral": ("llama", "mistral", MODELS["mistral"][1], {**LLAMA, "sliding_window_size": 4}),
    "qwen2": ("llama", "qwen2", {**MODELS["llama"][1]}, {**LLAMA, "attn_bias": True}),
    "qwen3": ("llama", "qwen3", MODELS["qwen3"][1], {**LLAMA, "norm_qk": True, "head_size": 16}),
    "gemma": (
        "llama",
        "gemma",
        MODELS["gemma"][1],
        {
            **LLAMA,
            **{"mlp_class_name": "GemmaMLP", "gelu_approximate": "tanh", "name": "Gemma-2b", "scale_embeddings": True},
            "head_size": 16,
        },
    ),
    "phi": (
        "llama",
        "phi",
        MODELS["phi"][1],
        {
            **{"rotary_percentage": 0.5, "shared_attention_norm": True, "lm_head_bias": True},
            **{"gelu_approximate": "tanh", "bias": True},
        },
    ),
    "pythia": ("gpt_neox", "gpt_neox", MODELS["gpt_neox"][1], NEOX),
    "falcon": (
        "falcon",
        "falcon",
        {**FALCON, "tie_word_embeddings": False},
        {"shared_attention_norm": True, "bias": False, "n_query_groups": 1, "rotary_percentage": 1.0},
    ),
}


def save_litgpt(folder: Path, model: Any, names: str, settings: dict[str, Any], section: str = "") -> None:
    """Write lit_model.pth and model_config.yaml."""
    config, state = model.config, {}
    for name, tensor in model.state_dict().items():
        for theirs, litgpt in NAMES[names].items():
            name = name.replace(theirs, litgpt)
        state[name] = tensor.clone()
    for i in range(config.num_hidden_layers):
        for kind in ("weight", "bias"):
            stem = f"transformer.h.{i}.self_attn."
            parts = [state.pop(f"{stem}{one}_proj.{kind}", None) for one in "qkv"]
            if parts[0] is not None:
                state[f"transformer.h.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    folder.mkdir()
    torch.save({section: state} if section else state, folder / "lit_model.pth")
    ffn = next(one for name, one in state.items() if name.endswith("mlp.proj.weight")).shape[1]
    sizes = {"n_layer": 2, "n_embd": config.hidden_size, "n_head": config.num_attention_heads, "block_size": 64}
    sizes |= {"padded_vocab_size": config.vocab_size, "intermediate_size": ffn, "name": "x", "hf_config": {}}
    eps = next(value for key, value in config.to_dict().items() if key.endswith(("_eps", "_epsilon")))
    rope = {"rope_base": (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000)}
    (folder / "model_config.yaml").write_text(yaml.safe_dump({**sizes, "norm_eps": eps, **rope, **settings}))


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    names, kind, hf, settings = CASES[name]
    theirs = save_model(tmp_path / "hf", kind, {**hf, **ENDS})
    save_litgpt(tmp_path / "lit", theirs, names, settings, section="model" if name == "llama" else "")
    convert(tmp_path / "lit", tmp_path / "ours")
    expected = theirs(IDS).logits
    assert expected.std() > 0.1
    assert (load_model(tmp_path / "ours")(IDS) - expected).abs().max() <= 1e-5


def test_the_file_alone_and_what_is_not_computed(tmp_path: Path) -> None:
    theirs = save_model(tmp_path / "hf", "llama", {**MODELS["llama"][1], **ENDS})
    save_litgpt(tmp_path / "lit", theirs, "llama", LLAMA)
    convert(tmp_path / "lit/lit_model.pth", tmp_path / "ours")
    described = yaml.safe_load((tmp_path / "lit/model_config.yaml").read_text())
    for key, value in {"final_logit_softcapping": 30.0, "n_expert": 8, "some_new_switch": 1}.items():
        (tmp_path / "lit/model_config.yaml").write_text(yaml.safe_dump({**described, key: value}))
        with pytest.raises(UnsupportedError, match=rf"{key}.* model_config.yaml|model_config.yaml.* {key}"):
            convert(tmp_path / "lit", tmp_path / "refused")
    (tmp_path / "lit/model_config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"model_config.yaml is missing"):
        convert(tmp_path / "lit", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
