"""The `model` section of eole's config.json, and the architecture that it defines.

Only settings that were given are in the file. Encoder, decoder and embeddings have sections of their own; what is not
set there has the value of the model, and otherwise its default.
(https://github.com/eole-nlp/eole/blob/main/eole/config/models.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onmt_llm.checkpoint.formats.huggingface.families.base import (
    HfConfig,
    Row,
    Values,
    heads,
    must_be,
    nested,
    setting,
)
from onmt_llm.checkpoint.formats.huggingface.families.keys import Settings, check_keys
from onmt_llm.checkpoint.formats.huggingface.families.layers import FULL, SLIDING
from onmt_llm.checkpoint.formats.imported import TypedSource
from onmt_llm.config.model import Activation, ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import CheckpointError, UnsupportedError

FILE = "config.json"
DEFAULTS: Mapping[str, Any] = {"layers": 2, "hidden_size": 512, "heads": 8, "transformer_ff": 2048, "norm_eps": 1e-5}
ACTIVATIONS: Mapping[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu-tanh": ("gelu_tanh", False),
    "silu": ("silu", False),
    "gated-gelu": ("gelu", True),
    "gated-gelu-tanh": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
}
"""eole's names of activations: ours, and whether the feed-forward layer is gated."""
POSITIONS = "embeddings.position_encoding_type"


def architecture(model: Mapping[str, Any], source: TypedSource, *, ignore_unknown: bool) -> ModelConfig:
    """The architecture of a language model or an encoder-decoder.

    Args:
        model: The `model` section.
        source: The tensors, which show which biases there are.
        ignore_unknown: Log keys that are not known, instead of refusing them.

    Raises:
        UnsupportedError: The model computes something that `Transformer` does not.
    """
    kind = model.get("architecture", "custom")
    if kind not in ("transformer", "transformer_lm", "custom"):
        raise UnsupportedError(
            f"The architecture of an eole model must be transformer or transformer_lm, but is {kind}."
        )
    sides = ["decoder", *["encoder"] * (kind == "transformer" or isinstance(model.get("encoder"), Mapping))]
    settings = {side: stack_settings(model, side) for side in sides}
    for side, found in settings.items():
        _check_type(found, side)
        check_keys(
            found, [*(key for row in ROWS for key in row.keys), *HARMLESS], "eole", ignore_unknown=ignore_unknown
        )
    found = settings["decoder"]
    values = _values(found)
    if "encoder" in settings:
        _check_alike(values, _values(settings["encoder"]))
        _refuse_beside_an_encoder(found)
        values["encoder_layers"] = settings["encoder"]["layers"]
    return ModelConfig.model_validate(
        nested(
            {
                **values,
                **_biases(source.names()),
                "decoder_layers": found["layers"],
                "vocab_size": _rows("tgt", source, shared=bool(model.get("share_embeddings"))),
                "src_vocab_size": _rows("src", source, shared=True) if "encoder" in settings else None,
                "tie_embeddings": bool(model.get("share_decoder_embeddings", False)),
                "share_embeddings": bool(model.get("share_embeddings", False)),
            }
        )
    )


def stack_settings(model: Mapping[str, Any], side: str) -> Settings:
    """The settings of a stack; those of nested sections as `section.name`."""

    def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if not isinstance(value, Mapping) and value != -1}

    stack = section(model, side)
    whole, own = plain(model), plain(stack)
    flat: dict[str, Any] = {**DEFAULTS, **whole, **own}
    embeddings = {key: whole[key] for key in ("position_encoding_type", "n_positions") if key in whole}
    sections: dict[str, dict[str, Any]] = {
        "embeddings": embeddings | plain(section(model, "embeddings")),
        "rope": plain(section(stack, "rope_config") or section(model, "rope_config")),
    }
    for name, settings in sections.items():
        flat |= {f"{name}.{key}": value for key, value in settings.items()}
    return Settings(flat, file=FILE)


def section(settings: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of config.json; empty if it is not there.

    Raises:
        CheckpointError: It is no mapping.
    """
    value = settings.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"`{name}` in {FILE} must hold settings by name, but is a {type(value).__name__}.")
    return value or {}


def _check_type(found: HfConfig, side: str) -> None:
    stated = found.get(f"{side}_type", "transformer")
    if stated != "transformer":
        raise UnsupportedError(f"{side}_type in {FILE} must be transformer, but is {stated}.")


def _values(found: HfConfig) -> Values:
    return {name: value for row in ROWS for name, value in row.read(found).items()}


def _check_alike(decoder: Values, encoder: Values) -> None:
    """Refuse stacks that differ in a setting of both."""
    of_decoders = ("moe", "sliding_window", "layer_types", "max_position")
    for name, value in decoder.items():
        if value != encoder[name] and not name.startswith(of_decoders):
            raise UnsupportedError(f"{name} must be the same in both stacks, but is {encoder[name]} and {value}.")


def _refuse_beside_an_encoder(found: HfConfig) -> None:
    """What only decoders of language models have, or what eole adds to cross attention."""
    for key in ("relative_positions_buckets", "parallel_residual", "ffn_layernorm", "query_norm"):
        if found.get(key):
            raise UnsupportedError(f"{key} in {FILE} must not be set in a model with an encoder, but is {found[key]}.")


def _biases(names: list[str]) -> Values:
    def some(end: str) -> bool:
        return any(name.endswith(f"{end}.bias") for name in names)

    return {
        "attn_bias": some("linear_query"),
        "attn_out_bias": some("final_linear"),
        "ffn_bias": some("down_proj"),
        "lm_head_bias": "generator.bias" in names,
    }


def _rows(side: str, source: TypedSource, *, shared: bool) -> int:
    names = [f"{side}_emb.embeddings.weight", *["src_emb.embeddings.weight"] * shared]
    for name in names:
        if name in source.names():
            return source.shape(name)[0]
    raise CheckpointError(f"The weights of an eole model must have {names[0]}, but do not.")


def _read_layers(found: HfConfig) -> Values:
    """Feed-forward layer and norms."""
    function, norm = found.get("mlp_activation_fn", "relu"), found.get("layer_norm", "standard")
    if function not in ACTIVATIONS:
        raise UnsupportedError(
            f"mlp_activation_fn in {FILE} must be one of {', '.join(ACTIVATIONS)}, but is {function}."
        )
    activation, gated = ACTIVATIONS[function]
    is_parallel = bool(found.get("parallel_residual"))
    return {
        "activation": activation,
        "ffn_gated": gated,
        "norm": "rmsnorm" if norm in ("rms", "gemma-rms") else "layernorm",
        "norm_position": "both" if found.get("ffn_layernorm") else "pre",
        "parallel_residual": is_parallel,
        "shared_norm": is_parallel and bool(found.get("shared_layer_norm")),
    }


def _read_head_norms(found: HfConfig) -> Values:
    query, key = bool(found.get("query_norm")), bool(found.get("key_norm"))
    if query != key or (query and found.get("layer_norm") not in ("rms", "gemma-rms")):
        raise UnsupportedError(f"query_norm and key_norm in {FILE} must be set together, with an RMSNorm, but are not.")
    return {"qk_norm": query}


def _read_scale(found: HfConfig) -> Values:
    """Attention scores are divided by the square root of `attn_scaling`; relative positions (Shaw) are not, so that the
    factor is in the keys (`rules`)."""
    value = found.get("attn_scaling")
    if _is_shaw(found):
        return {"scale_attention": False}
    return {"attention_scale": None if value is None else value**-0.5}


def _is_shaw(found: HfConfig) -> bool:
    return found.get(POSITIONS) == "Relative" and not found.get("relative_positions_buckets")


def key_factor(found: HfConfig, config: ModelConfig) -> float:
    """What keys are multiplied by, instead of attention scores."""
    return float(found.get("attn_scaling") or config.size_per_head) ** -0.5 if _is_shaw(found) else 1.0


def _read_positions(found: HfConfig) -> Values:
    kind = found.get(POSITIONS, "SinusoidalInterleaved")
    count, buckets = found.get("embeddings.n_positions") or 0, found.get("relative_positions_buckets") or 0
    scaled = bool(found.get("embeddings.normalize"))
    context = {"max_position": found.get("max_position_embeddings") or 8192, "scale_embeddings": scaled}
    if buckets and kind != "Relative":
        sentence = f"relative_positions_buckets in {FILE} needs Relative positions, but the positions are {kind}."
        raise UnsupportedError(sentence)
    if kind == "Learned":
        if scaled:
            raise UnsupportedError(f"normalize in {FILE} must be false with Learned positions, but is true.")
        return {"position": "learned", "scale_embeddings": False, "max_position": count}
    if kind in ("SinusoidalInterleaved", "SinusoidalConcat"):
        sinusoid = "standard" if kind == "SinusoidalInterleaved" else "concat"
        return {**context, "position": "sinusoidal", "sinusoid": sinusoid, "scale_embeddings": True}
    if kind == "Relative" and buckets:
        return {**context, "position": "t5", "relative_buckets": buckets, "relative_max_distance": count}
    if _is_shaw(found):
        return {**context, "position": "shaw", "relative_positions": count}
    names = {"Rotary": "rotary", "Alibi": "alibi", None: "none"}
    if kind not in names:
        raise UnsupportedError(f"position_encoding_type in {FILE} is {kind}, which is not known.")
    return {**context, "position": names[kind]}


def _read_rope(found: HfConfig) -> Values:
    rotary_dim, scaling = found.get("rope.rotary_dim") or 0, found.get("rope.scaling_type") or "default"
    values: Values = {"theta": found.get("rope.rotary_theta", 10000), "rotary_dim": rotary_dim or None}
    if scaling == "llama3":
        keys = {
            "factor": "scaling_factor",
            "low_freq_factor": "low_freq_factor",
            "high_freq_factor": "high_freq_factor",
        }
        keys["original_max_position"] = "original_max_position_embeddings"
        given = {ours: found.get(f"rope.{key}") for ours, key in keys.items()}
        values |= {"scaling": "llama3", "factor": 8.0, **{key: value for key, value in given.items() if value}}
    elif scaling == "gemma3":
        values |= {"scaling": "linear", "factor": found.get("rope.scaling_factor", 8.0)}
    elif scaling != "default":
        raise UnsupportedError(
            f"scaling_type in {FILE} must be llama3 or gemma3, since eole ignores others or makes them depend on "
            f"its own options, but is {scaling}.",
            hint="convert the model that it was made from",
        )
    if found.get("rope.interleave_local"):
        _check_local(found)
        values["local_theta"] = found.get("rope.rotary_theta_local", 10000)
    return {"rope": RopeConfig.model_validate(values)}


def _check_local(found: HfConfig) -> None:
    """Rotary positions with another base must be those of the layers with a sliding window."""
    if SLIDING not in (found.get("layer_types") or ()) or not found.get("sliding_window"):
        raise UnsupportedError(
            f"interleave_local in {FILE} needs layer_types of which some are {SLIDING}, but there are none: eole then "
            "gives all layers the same window.",
            hint="convert the model that it was made from",
        )


def _read_windows(found: HfConfig) -> Values:
    """A window counts the token itself. Without a layer of the type `sliding_attention`, all have it."""
    size, kinds = found.get("sliding_window") or None, found.get("layer_types") or []
    others = sorted({str(kind) for kind in kinds} - {FULL, SLIDING})
    if others:
        raise UnsupportedError(f"layer_types in {FILE} must be {FULL} and {SLIDING}, but one is {others[0]}.")
    mixed = size is not None and {FULL, SLIDING} == set(kinds)
    return {"sliding_window": size, "layer_types": kinds[: found["layers"]] if mixed else []}


def _read_experts(found: HfConfig) -> Values:
    count = found.get("num_experts") or 0
    if not count:
        return {}
    size, shared = found.get("moe_transformer_ff") or found["transformer_ff"], found.get("num_shared_experts") or 0
    if shared and not found.get("shared_expert_gate"):
        raise UnsupportedError(
            f"shared_expert_gate in {FILE} must be true, since there are shared experts, but is not."
        )
    return {
        "moe.experts": count,
        "moe.experts_per_token": found.get("num_experts_per_tok", 2),
        "moe.expert_size": size,
        "moe.shared_size": size * shared,
        "moe.normalize_weights": bool(found.get("moe_softmax_after") or found.get("moe_renormalize")),
        "moe.dense_layers": list(range(found.get("first_k_dense_replace") or 0)),
    }


def _read_only(read: Any, *keys: str) -> Row:
    return Row(keys, read, lambda config: {})


ROWS = (
    heads(count="heads", kv="heads_kv", head_dim="head_dim"),
    setting("ffn_size", "transformer_ff"),
    setting("norm_eps", "norm_eps"),
    _read_only(
        _read_layers, "mlp_activation_fn", "layer_norm", "ffn_layernorm", "parallel_residual", "shared_layer_norm"
    ),
    _read_only(_read_head_norms, "query_norm", "key_norm"),
    _read_only(_read_scale, "attn_scaling"),
    _read_only(
        _read_positions,
        *(POSITIONS, "embeddings.n_positions", "embeddings.normalize", "relative_positions_buckets"),
        "max_position_embeddings",
    ),
    _read_only(
        _read_rope,
        *("rope.rotary_theta", "rope.rotary_dim", "rope.scaling_type", "rope.scaling_factor", "rope.low_freq_factor"),
        *("rope.high_freq_factor", "rope.original_max_position_embeddings", "rope.rotary_theta_local"),
        "rope.interleave_local",
    ),
    _read_only(_read_windows, "sliding_window", "layer_types"),
    _read_only(
        _read_experts,
        *("num_experts", "num_experts_per_tok", "num_shared_experts", "shared_expert_gate", "moe_transformer_ff"),
        *("moe_softmax_after", "moe_renormalize", "first_k_dense_replace"),
    ),
    must_be(add_estimator=False, LM_type="causal", generator_function="softmax"),
    must_be(value_norm=False, qk_norm_post_rope=False, q_gating=False, encoder_layer_style="standard"),
    must_be(final_encoder_layer_norm=True, global_head_dim=None, global_heads_kv=None),
    must_be(**{"embeddings.embedding_type": "standard", "embeddings.embedding_layer_norm": False}),
    must_be(**{"embeddings.position_shift": 0, "rope.alpha": None, "rope.xdrope_section": None}),
    must_be(**{"rope.rotary_dim_global": 0, "rope.partial_rotary_factor": 0.0, "rope.multidimensional_rope": False}),
)
"""Two more, `rope.rotary_interleave` and `layer_norm: gemma-rms`, change the weights (`rules`)."""
HARMLESS = (
    *("architecture", "huggingface_model", "eole_version", "left_pad", "encoder_type", "decoder_type", "layers"),
    *("share_embeddings", "share_decoder_embeddings", "generator_bias", "add_qkvbias", "add_final_linear_bias"),
    "add_key_bias",
    *("add_ffnbias", "rope.rotary_interleave", "rope.tmax_index", "position_encoding_type", "n_positions"),
    *("word_vec_size", "*_word_vec_size", "embeddings.*word_vec*", "embeddings.position_encoding"),
    "embeddings.token_type_vocab_size",
    # training, further heads and word alignment
    *("num_mtp_heads", "mtp_*", "alignment_*", "full_context_alignment", "lambda_*"),
    # other kinds of models
    *("input_feed", "adapter*", "projector_activation_fn", "spatial_merge_size", "estimator_type", "linear_*"),
    *("with_cross_attn", "coverage_attn", "global_attention*", "aan_useffn", "interpolate_mode", "encoder", "decoder"),
)
