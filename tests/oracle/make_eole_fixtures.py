"""Make tiny models with eole 0.6.4 and record what they compute. Run by an interpreter that has eole.

    PYTHON_OF_EOLE make_eole_fixtures.py DIRECTORY [NAME ...]    tests/data/eole was written so

Each model of `MODELS` is built by eole from its options, with random weights, and saved by the class with which
`eole train` saves: `NAME/` has config.json, vocab.json and model.00.safetensors (without the tables of sines, which
are computed), and `batch.npz` with source, target and the logits of a padded batch.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyonmttok
import torch
from eole.config.run import TrainConfig
from eole.models.model import get_model_class
from eole.models.model_saver import TrainingModelSaver
from safetensors.torch import load_file, save_file

SPECIALS = ["<unk>", "<blank>", "<s>", "</s>"]
SIZES: dict[str, Any] = {"hidden_size": 16, "heads": 4, "transformer_ff": 24, "layers": 2}
LLAMA = {"layer_norm": "rms", "mlp_activation_fn": "gated-silu", "heads_kv": 2, "norm_eps": 1e-6}
ROTARY = {"position_encoding_type": "Rotary"}
ROPE = {"rotary_theta": 10000}
MODELS: dict[str, dict[str, Any]] = {
    "translation": {"architecture": "transformer", "add_qkvbias": True, "add_ffnbias": True},
    "translation_shared": {
        **{"architecture": "transformer", "share_embeddings": True, "share_decoder_embeddings": True},
        **{"encoder": {"layers": 1}, "mlp_activation_fn": "gated-gelu", "add_final_linear_bias": True},
        "embeddings": {"position_encoding_type": "SinusoidalConcat"},
    },
    "translation_relative": {
        **{"architecture": "transformer", "layer_norm": "rms", "mlp_activation_fn": "gelu"},
        "embeddings": {"position_encoding_type": "Relative", "n_positions": 3},
    },
    "translation_rotary": {"architecture": "transformer", **LLAMA, "embeddings": ROTARY, "rope_config": ROPE},
    "sines": {"architecture": "transformer_lm", "generator_bias": False},
    "learned": {
        **{"architecture": "transformer_lm", "mlp_activation_fn": "gelu-tanh"},
        "embeddings": {"position_encoding_type": "Learned", "n_positions": 20},
    },
    "t5_bias": {
        **{"architecture": "transformer_lm", "relative_positions_buckets": 8},
        "embeddings": {"position_encoding_type": "Relative", "n_positions": 12},
    },
    "alibi": {
        **{"architecture": "transformer_lm", "parallel_residual": True},
        "embeddings": {"position_encoding_type": "Alibi"},
    },
    "llama": {
        **{"architecture": "transformer_lm", **LLAMA, "embeddings": ROTARY, "sliding_window": 3},
        "rope_config": {
            **{"rotary_interleave": False, "rotary_theta": 500000, "scaling_type": "llama3", "scaling_factor": 4.0},
            "original_max_position_embeddings": 8,
        },
    },
    "norms": {
        **{"architecture": "transformer_lm", **LLAMA, "layer_norm": "gemma-rms", "ffn_layernorm": True},
        **{"query_norm": True, "key_norm": True, "head_dim": 8, "attn_scaling": 9.0, "share_decoder_embeddings": True},
        **{"embeddings": {**ROTARY, "normalize": True}, "sliding_window": 3, "rope_config": ROPE},
        "decoder": {
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_config": {"interleave_local": 2, "rotary_theta": 1000000, "rotary_theta_local": 100},
        },
    },
    "experts": {
        **{"architecture": "transformer_lm", **LLAMA, "embeddings": ROTARY, "num_experts": 4, "rope_config": ROPE},
        **{"num_experts_per_tok": 2, "moe_transformer_ff": 12, "moe_renormalize": True, "first_k_dense_replace": 1},
    },
    "shared_expert": {
        **{"architecture": "transformer_lm", **LLAMA, "embeddings": ROTARY, "num_experts": 3, "rope_config": ROPE},
        **{"num_experts_per_tok": 2, "moe_transformer_ff": 12, "moe_softmax_after": True, "num_shared_experts": 2},
        "shared_expert_gate": True,
    },
    "phi": {
        **{"architecture": "transformer_lm", "parallel_residual": True, "shared_layer_norm": True, "add_ffnbias": True},
        **{"mlp_activation_fn": "gelu", "add_qkvbias": True, "embeddings": ROTARY, "attn_scaling": 9.0},
        "rope_config": {**ROPE, "rotary_dim": 2},
    },
}


class NoState:
    """An optimiser without a state."""

    def state_dict(self) -> dict[str, Any]:
        return {}


def make(name: str, folder: Path) -> None:
    torch.manual_seed(1)
    options = {**SIZES, **MODELS[name]}
    options["embeddings"] = {"word_vec_size": SIZES["hidden_size"], **options.get("embeddings", {})}
    is_lm, is_shared = options["architecture"] == "transformer_lm", options.get("share_embeddings", False)
    target = [*SPECIALS, *(f"t{i}" for i in range(16))]
    source = target if is_lm or is_shared else [*SPECIALS, *(f"s{i}" for i in range(12))]
    with tempfile.TemporaryDirectory() as scratch:
        config = TrainConfig(
            data=None,
            src_vocab=None,
            share_vocab=source is target,
            n_sample=0,
            model=options,
            training={"dropout": [0.0], "attention_dropout": [0.0], "model_path": scratch, "world_size": 0},
        )
        vocabs = {
            "specials": dict(zip(("unk_token", "pad_token", "bos_token", "eos_token"), SPECIALS, strict=True)),
            "src": pyonmttok.build_vocab_from_tokens(source),
            "decoder_start_token": "<s>",
        }
        vocabs["tgt"] = vocabs["src"] if source is target else pyonmttok.build_vocab_from_tokens(target)
        model = get_model_class(config.model).build(config.model, vocabs, config.training).eval()
        model.build_generator(config.model, config.training, vocabs)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                one = parameter_name.endswith("norm.weight") and config.model.decoder.layer_norm != "gemma-rms"
                parameter.copy_(torch.randn_like(parameter) * 0.3 + float(one))
        TrainingModelSaver(scratch, model, config, vocabs, NoState()).save(1)
        out = folder / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for file in ("config.json", "vocab.json"):
            text = (Path(scratch) / "step_1" / file).read_text(encoding="utf-8")
            (out / file).write_text(text.replace(scratch, "run"), encoding="utf-8")
        tensors = load_file(Path(scratch) / "step_1" / "model.00.safetensors")
        save_file(
            {key: tensor for key, tensor in tensors.items() if not key.endswith("pe.pe")}, out / "model.00.safetensors"
        )
    np.savez_compressed(out / "batch.npz", **batch(model, len(source), len(target), is_lm=is_lm))
    print(name, sum(file.stat().st_size for file in out.iterdir()))


@torch.no_grad()
def batch(model: Any, sources: int, targets: int, *, is_lm: bool) -> dict[str, np.ndarray]:
    """Source, target and logits; 1 is padding, and the target of an encoder-decoder has one token more."""
    tgt_BT = torch.randint(4, targets, (3, 9))
    if is_lm:
        out = model(tgt_BT, None, torch.tensor([9, 9, 9]))
        return {"tgt": tgt_BT.numpy(), "logits": model.generator(out.dec_out).numpy()}
    src_BS = torch.randint(4, sources, (3, 8))
    src_BS[1, 6:] = 1
    out = model(src_BS, torch.nn.functional.pad(tgt_BT, (0, 1), value=3), torch.tensor([8, 6, 8]))
    return {"src": src_BS.numpy(), "tgt": tgt_BT.numpy(), "logits": model.generator(out.dec_out).numpy()}


if __name__ == "__main__":
    for each in sys.argv[2:] or MODELS:
        make(each, Path(sys.argv[1]))
