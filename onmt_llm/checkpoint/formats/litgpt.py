"""Read litgpt's models: lit_model.pth and model_config.yaml.

One class computes all of litgpt's families, so its settings map to ours one by one. q, k and v are one matrix: their
rows are one after the other (`attn.qkv`), in older files group by group (`attn.attn`).
(https://github.com/Lightning-AI/litgpt/blob/main/litgpt/config.py)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from onmt_llm.checkpoint.files.torch_pickle import TorchTensors
from onmt_llm.checkpoint.formats.huggingface.families.base import (
    QKV,
    HfConfig,
    Row,
    Values,
    fused,
    heads,
    must_be,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.keys import Settings, check_keys, file_name
from onmt_llm.checkpoint.formats.imported import ImportedModel, ImportOptions
from onmt_llm.checkpoint.formats.names import decoder_rules
from onmt_llm.checkpoint.formats.ops import IDENTITY, GroupedQKV, Offset, SplitRows
from onmt_llm.checkpoint.formats.rules import Rule, check_sizes, overridden, per_layer, rule
from onmt_llm.checkpoint.formats.tokenizer_files import from_huggingface
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError

CONFIG_FILE, WEIGHTS_FILE = "model_config.yaml", "lit_model.pth"


def _read_layers(found: HfConfig) -> Values:
    """Feed-forward layer, norms and biases."""
    kind, name = found.get("mlp_class_name", "GptNeoxMLP"), str(found.get("name", ""))
    gelu = {"none": "gelu", "tanh": "gelu_tanh"}.get(found.get("gelu_approximate") or "none", "")
    activations = {"GptNeoxMLP": gelu, "LLaMAMLP": "silu", "GemmaMLP": gelu}
    if not activations.get(kind):
        raise UnsupportedError(
            f"mlp_class_name in {file_name(found)} must be one of {', '.join(activations)}, but is '{kind}'."
        )
    if found.get("norm_class_name", "LayerNorm") == "LayerNorm" and "OLMo" in name:
        raise UnsupportedError(f"The norms must have weights, but those of {name} (OLMo 1) have none.")
    biases = bool(found.get("bias", True))
    return {
        "ffn_gated": kind != "GptNeoxMLP",
        "activation": activations[kind],
        "norm": {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}.get(found.get("norm_class_name", "LayerNorm"), ""),
        "attn_bias": biases or bool(found.get("attn_bias")),
        "attn_out_bias": biases,
        "ffn_bias": biases,
        "parallel_residual": bool(found.get("parallel_residual", True)),
        "shared_norm": bool(found.get("shared_attention_norm")),
    }


def _read_rope(found: HfConfig) -> Values:
    part, scaling = found.get("rotary_percentage", 0.25), found.get("rope_adjustments") or {}
    head_dim = found.get("head_size") or found["n_embd"] // found["n_head"]
    values: Values = {
        "theta": found.get("rope_base", 10000),
        "rotary_dim": None if part == 1 else int(head_dim * part),
    }
    shrink = found.get("rope_condense_ratio", 1)
    if shrink != 1:
        values |= {"scaling": "linear", "factor": shrink}
    if scaling.keys() == {"factor"}:
        values |= {"scaling": "linear", "factor": scaling["factor"] * shrink}
    elif scaling.keys() == {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"} and shrink == 1:
        values |= {"scaling": "llama3", "original_max_position": scaling["original_max_seq_len"]}
        values |= {key: scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor")}
    elif scaling:
        raise UnsupportedError(f"Rotary scaling must be linear or llama3, but rope_adjustments is {dict(scaling)}.")
    return {"position": "rotary", "rope": RopeConfig.model_validate(values)}


def _read_window(found: HfConfig) -> Values:
    size, layers = found.get("sliding_window_size"), found["n_layer"]
    if size is not None and not all((found.get("sliding_window_indices") or [1] * layers)[:layers]):
        raise UnsupportedError("All layers must have the sliding window, but sliding_window_indices has zeros.")
    return {"sliding_window": size}


def _read_scale(found: HfConfig) -> Values:
    must_be(attention_scores_scalar=found.get("head_size")).read(found)
    return {}


def _nothing(config: ModelConfig) -> Values:
    return {}


ROWS = (
    setting("decoder_layers", "n_layer"),
    heads(hidden="n_embd", count="n_head", kv="n_query_groups", head_dim="head_size"),
    setting("vocab_size", "padded_vocab_size"),
    setting("ffn_size", "intermediate_size"),
    setting("max_position", "block_size", default=4096),
    setting("norm_eps", "norm_eps", default=1e-5),
    setting("qk_norm", "norm_qk", default=False),
    setting("lm_head_bias", "lm_head_bias", default=False),
    setting("scale_embeddings", "scale_embeddings", default=False),
    Row(
        (
            *("mlp_class_name", "gelu_approximate", "norm_class_name", "name", "bias", "attn_bias"),
            *("parallel_residual", "shared_attention_norm"),
        ),
        _read_layers,
        _nothing,
    ),
    Row(("rotary_percentage", "rope_base", "rope_adjustments", "rope_condense_ratio"), _read_rope, _nothing),
    Row(("sliding_window_size", "sliding_window_indices"), _read_window, _nothing),
    Row(("attention_scores_scalar",), _read_scale, _nothing),
    must_be(norm_qk_type="default", post_attention_norm=False, post_mlp_norm=False, norm_1=True, norm_2=True),
    must_be(attention_logit_softcapping=None, final_logit_softcapping=None, latent_attention=None),
    must_be(rope_interleave=False, rope_local_base_freq=None, n_expert=0),
)
_HARMLESS = (
    *("hf_config", "vocab_size", "padding_multiple", "rope_indices", "rope_n_elem"),
    *("n_shared_expert", "n_expert_*", "n_topk_*", "moe_intermediate_size", "first_k_dense_replace"),
    *("routed_scaling_factor", "norm_topk_prob"),
)


def find_litgpt(path: Path) -> Path | None:
    """The weights at `path`: the file itself, or the one in the directory."""
    file = path if path.name == WEIGHTS_FILE else path / WEIGHTS_FILE
    return file if file.is_file() else None


def open_litgpt(path: Path, options: ImportOptions) -> ImportedModel:
    """Open a litgpt model.

    Args:
        path: The directory, or lit_model.pth in it.
        options: See `ImportOptions`; the tokeniser is that beside the weights, if none is named.

    Raises:
        CheckpointError: Files are missing or damaged.
        UnsupportedError: The model computes something that ours do not.
    """
    file = find_litgpt(path)
    if file is None:
        raise CheckpointError(f"There is no {WEIGHTS_FILE} at {path}.")
    found = _settings(file.parent / CONFIG_FILE)
    known = [*(key for row in ROWS for key in row.keys), *_HARMLESS]
    check_keys(found, known, "litgpt", ignore_unknown=options.ignore_unknown)
    source = TorchTensors.open([file], section="model")
    config = ModelConfig.model_validate({name: value for row in ROWS for name, value in row.read(found).items()})
    check_sizes(config, source, file)
    return ImportedModel(
        origin=f"litgpt {found.get('name') or 'model'}, {file.parent.name}",
        model=config,
        source=source,
        rules=rules(config, source.names(), is_gemma="Gemma" in str(found.get("name"))),
        ignore=(),
        tokenizer=from_huggingface(
            file.parent,
            rows=config.vocab_size,
            tokenizer_model=options.tokenizer_model,
            vocab_file=options.vocab_file,
        ),
    )


def _settings(file: Path) -> Settings:
    if not file.is_file():
        raise CheckpointError(f"The file {file} is missing.", hint="litgpt writes it beside lit_model.pth: copy it too")
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} must hold settings by name, but does not.")
    return Settings(content, file=file.name)


def rules(config: ModelConfig, names: Collection[str], *, is_gemma: bool) -> list[Rule]:
    """Weight-name rules; Gemma's RMSNorm multiplies by 1 + weight."""
    norm = Offset(1.0) if is_gemma and config.norm == "rmsnorm" else IDENTITY
    table = decoder_rules("litgpt", {"norm": norm})
    if not config.ffn_gated:
        up = [
            rule(f"decoder.layers.{{i}}.mlp.up_proj.{kind}", f"transformer.h.{{i}}.mlp.fc.{kind}")
            for kind in ("weight", "bias")
        ]
        table = overridden(table, up)
    query, key = config.heads * config.size_per_head, config.num_kv_heads * config.size_per_head
    if "transformer.h.0.attn.attn.weight" in names:
        grouped = GroupedQKV(config.heads, config.num_kv_heads, config.size_per_head)
        qkv = fused("transformer.h", "attn.attn", QKV, grouped)
    else:
        qkv = fused("transformer.h", "attn.qkv", QKV, SplitRows((query, key, key)))
    return per_layer(overridden(table, qkv), config.decoder_layers)
