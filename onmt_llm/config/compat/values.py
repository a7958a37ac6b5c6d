"""Options of OpenNMT-py whose values need translating, not only their names.

`TRANSLATORS` has one function per option. It puts our options into a `Translation`, or an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple


@dataclass
class Translation:
    """A user's options in our names and values.

    Attributes:
        values: Values by our option names. A value may be part of a mapping, to be merged (`rope`).
        sources: For each of our options, the user's key that it came from, for messages.
        notes: (user's key, sentence) of options without effect, to be logged.
        errors: (user's key, sentence) of options that are refused.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def put(self, option: str, value: Any, source: str) -> None:
        """Set an option, from the user's key `source`; mappings are merged."""
        if isinstance(value, dict) and isinstance(self.values.get(option), dict):
            value = {**self.values[option], **value}
        self.values[option] = value
        self.sources.setdefault(option, source)

    def put_default(self, option: str, value: Any, source: str) -> None:
        """Set an option unless it is set already."""
        if option not in self.values:
            self.put(option, value, source)


_ACTIVATIONS = {"gated-gelu": "gelu", "gated-gelu-tanh": "gelu_tanh", "fast_gelu": "gelu_tanh"}
_PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}


def _layers(user: dict[str, Any], result: Translation) -> None:
    if user["layers"] == -1:
        return
    result.put_default("encoder_layers", user["layers"], "layers")
    result.put_default("decoder_layers", user["layers"], "layers")


def _model_task(user: dict[str, Any], result: Translation) -> None:
    if user["model_task"] == "lm":
        _language_model("model_task", user, result)
    result.put("model_task", user["model_task"], "model_task")


def _language_model(key: str, user: dict[str, Any], result: Translation) -> None:
    """A language model, which has no encoder: OpenNMT-py passes over the layers of one."""
    if user.get("model_task") == "seq2seq":
        result.errors.append((key, f"'{key}' must be transformer with model_task: seq2seq, but is {user[key]}."))
    source = result.sources.get("encoder_layers")
    if source in ("enc_layers", "layers") and result.values["encoder_layers"]:
        del result.values["encoder_layers"], result.sources["encoder_layers"]
        if source == "enc_layers":
            result.notes.append((source, f"'{source}' has no effect: a language model ('{key}') has no encoder."))
    result.put_default("model_task", "lm", key)


def _encoder_type(user: dict[str, Any], result: Translation) -> None:
    kind = user["encoder_type"]
    result.put_default("model_defaults", "opennmt", "encoder_type")
    if kind == "transformer_lm":
        _language_model("encoder_type", user, result)
    elif kind == "transformer":
        if user.get("decoder_type") != "transformer_lm":
            result.put_default("model_task", "seq2seq", "encoder_type")
    else:
        result.errors.append(
            (
                "encoder_type",
                f"'encoder_type' must be transformer, but is '{kind}': other encoders are no longer supported.",
            )
        )


def _decoder_type(user: dict[str, Any], result: Translation) -> None:
    kind = user["decoder_type"]
    result.put_default("model_defaults", "opennmt", "decoder_type")
    if kind == "transformer_lm":
        _language_model("decoder_type", user, result)
    elif kind != "transformer":
        result.errors.append(
            (
                "decoder_type",
                f"'decoder_type' must be transformer or transformer_lm, but is '{kind}': other decoders are no longer "
                "supported.",
            )
        )


def _width(key: str, user: dict[str, Any], result: Translation) -> None:
    """Sizes that differ only in RNN models; a Transformer is as wide as its embeddings. -1 and 500 are defaults."""
    size = user[key]
    if size == -1 or (size == 500 and key not in ("word_vec_size", "rnn_size")):
        return
    if key == "src_word_vec_size" and user.get("n_src_feats") and user.get("feat_merge", "concat") == "concat":
        return  # with feature embeddings, this is the rest of hidden_size
    if result.values.setdefault("hidden_size", size) != size:
        result.errors.append((key, f"'{key}' must equal hidden_size ({result.values['hidden_size']}), but is {size}."))
    result.sources.setdefault("hidden_size", key)


def _rnn_size(key: str, user: dict[str, Any], result: Translation) -> None:
    """The name of hidden_size before OpenNMT-py 3, for Transformers too."""
    kinds = {str(user.get(name)) for name in ("encoder_type", "decoder_type")}
    if user[key] != -1 and not kinds & {"transformer", "transformer_lm"}:
        sentence = (
            f"'{key}' is an option of OpenNMT-py that is supported for Transformers only: RNN models, its default, are "
            "retired; set encoder_type and decoder_type to transformer."
        )
        result.errors.append((key, sentence))
    else:
        _width(key, user, result)


def _layer_norm(user: dict[str, Any], result: Translation) -> None:
    norms = {"rms": "rmsnorm", "standard": "layernorm"}
    if user["layer_norm"] in norms:
        result.put("norm", norms[user["layer_norm"]], "layer_norm")
    else:
        result.errors.append(("layer_norm", f"'layer_norm' must be standard or rms, but is '{user['layer_norm']}'."))


def _activation(user: dict[str, Any], result: Translation) -> None:
    name = str(user["pos_ffn_activation_fn"])
    result.put("activation", _ACTIVATIONS.get(name, name), "pos_ffn_activation_fn")
    # in OpenNMT-py these activations come with the second input projection, w_3
    result.put_default("ffn_gated", name.startswith("gated-") or name == "silu", "pos_ffn_activation_fn")


def _position(user: dict[str, Any], result: Translation) -> None:
    key = "max_relative_positions" if "max_relative_positions" in user else "position_encoding"
    relative, buckets = user.get("max_relative_positions") or 0, user.get("relative_positions_buckets") or 0
    if not isinstance(relative, int) or relative < -2:
        words = "0, -1 (rotary), -2 (ALiBi) or a distance"
        result.errors.append((key, f"'{key}' must be {words}, but is {relative}."))
    elif relative < 0:
        result.put("position", {-1: "rotary", -2: "alibi"}[relative], key)
    elif buckets:
        result.put("position", "t5", "relative_positions_buckets")
        result.put("relative_buckets", buckets, "relative_positions_buckets")
        if relative:
            result.put("relative_max_distance", relative, key)
    elif relative:
        result.put("position", "shaw", key)
        result.put("relative_positions", relative, key)
    elif "position_encoding" in user or "max_relative_positions" in user:
        result.put_default("position", "sinusoidal" if user.get("position_encoding") else "none", key)
        if user.get("position_encoding"):
            # OpenNMT-py adds sinusoids to embeddings multiplied by sqrt(hidden_size)
            result.put_default("scale_embeddings", True, key)
    if user.get("position_encoding") and (relative or buckets):
        result.errors.append(
            (
                "position_encoding",
                "'position_encoding' must be false with relative positions (max_relative_positions, "
                "relative_positions_buckets): a model has only one kind of positions.",
            )
        )


_SINUSOIDS = {"SinusoidalInterleaved": "standard", "SinusoidalConcat": "concat"}


def _position_type(user: dict[str, Any], result: Translation) -> None:
    kind = user["position_encoding_type"]
    if kind in _SINUSOIDS:
        # interleaved or in two halves: the same model up to the order of dimensions
        result.put_default("sinusoid", _SINUSOIDS[kind], "position_encoding_type")
    elif kind is not None:
        names = ", ".join(_SINUSOIDS)
        result.errors.append(
            ("position_encoding_type", f"'position_encoding_type' must be one of {names}, but is '{kind}'.")
        )


def _self_attn_type(user: dict[str, Any], result: Translation) -> None:
    kind = user["self_attn_type"]
    if kind == "average":
        result.errors.append(
            (
                "self_attn_type",
                "'self_attn_type' must be scaled-dot, but is average: average attention (Zhang et al. 2018) translates "
                "worse, and only saves the decoding time that a key/value cache saves as well.",
            )
        )
    elif kind in ("scaled-dot", "scaled-dot-flash"):
        note = "'self_attn_type' has no effect: attention always runs through torch's scaled-dot-product kernels."
        result.notes.append(("self_attn_type", note))
    elif kind is not None:
        result.errors.append(("self_attn_type", f"'self_attn_type' must be scaled-dot, but is '{kind}'."))


def _feat_merge(user: dict[str, Any], result: Translation) -> None:
    if user["feat_merge"] == "mlp":
        result.errors.append(
            (
                "feat_merge",
                "'feat_merge' must be concat or sum, but is mlp, which is no longer supported: concat is as good.",
            )
        )
    elif user["feat_merge"] is not None:
        result.put("feat_merge", user["feat_merge"], "feat_merge")


def _feat_vec_size(user: dict[str, Any], result: Translation) -> None:
    size = user["feat_vec_size"]
    result.put("feat_vec_size", None if size == -1 else size, "feat_vec_size")


def _kv_heads(user: dict[str, Any], result: Translation) -> None:
    if user.get("multiquery"):
        result.put("kv_heads", 1, "multiquery")
    elif user.get("num_kv"):
        result.put("kv_heads", user["num_kv"], "num_kv")


def _qkv_bias(user: dict[str, Any], result: Translation) -> None:
    for option in ("attn_bias", "attn_out_bias"):  # add_qkvbias covers the output projection too
        result.put_default(option, user["add_qkvbias"], "add_qkvbias")


def _rotary_theta(user: dict[str, Any], result: Translation) -> None:
    result.put("rope", {"theta": user["rotary_theta"]}, "rotary_theta")


def _rotary_dim(user: dict[str, Any], result: Translation) -> None:
    result.put("rope", {"rotary_dim": user["rotary_dim"] or None}, "rotary_dim")


def _experts(option: str, ours: str, user: dict[str, Any], result: Translation) -> None:
    result.put("moe", {ours: user[option]}, option)


def _sliding_window(user: dict[str, Any], result: Translation) -> None:
    window = user["sliding_window"] or None
    # A file with these keys describes a model of OpenNMT-py, whose window does not count the token itself.
    named = next((key for key in ("encoder_type", "decoder_type") if user.get(key) is not None), None)
    if named and type(window) is int and window > 0:
        sentence = (
            f"'sliding_window' is {window + 1} here: since {named} is set, its {window} is read as OpenNMT-py's, which "
            "does not count the token itself."
        )
        result.notes.append(("sliding_window", sentence))
        window += 1
    result.put("sliding_window", window, "sliding_window")


def _model_dtype(user: dict[str, Any], result: Translation) -> None:
    result.put("model_dtype", _PRECISION.get(str(user["model_dtype"]), user["model_dtype"]), "model_dtype")


def _optim(user: dict[str, Any], result: Translation) -> None:
    if user["optim"] == "sparseadam":
        sentence = (
            "'optim' must not be sparseadam, which is no longer supported: it needs sparse embedding gradients, but "
            "these are dense, since the output layer may share the embeddings; use adamw."
        )
        result.errors.append(("optim", sentence))
    else:
        result.put("optim", user["optim"], "optim")


_ONLY = {
    "generator_function": ("softmax", "the output layer is a softmax"),
    "data_type": ("text", "all data are text"),
    "model_type": ("text", "all data are text"),
}
"""Options of which one value is supported, and why."""


def _only(key: str, user: dict[str, Any], result: Translation) -> None:
    value, reason = _ONLY[key]
    if user[key] != value:
        result.errors.append((key, f"'{key}' must be {value}, but is '{user[key]}', which is no longer supported."))
    else:
        result.notes.append((key, f"'{key}' has no effect: {reason}."))


def _parallel_mode(user: dict[str, Any], result: Translation) -> None:
    mode, processes = user["parallel_mode"], user.get("world_size")
    if mode == "tensor_parallel":
        size = processes if type(processes) is int and processes > 1 else 1
        result.put_default("tensor_parallel", size, "parallel_mode")
        sentence = f"'parallel_mode' is tensor_parallel: {size} in training; one process serves a model."
        result.notes.append(("parallel_mode", sentence))
    elif mode != "data_parallel":
        sentence = f"'parallel_mode' must be data_parallel or tensor_parallel, but is '{mode}'."
        result.errors.append(("parallel_mode", sentence))


def _nucleus(user: dict[str, Any], result: Translation) -> None:
    """Top-p samples even if top-k is not given, or 0: all tokens."""
    top_p = user["random_sampling_topp"]
    result.put("random_sampling_topp", top_p, "random_sampling_topp")
    samples = type(top_p) in (int, float) and 0 < top_p < 1
    if samples and user.get("random_sampling_topk") in (None, 0):
        result.put("random_sampling_topk", -1, "random_sampling_topp")


def _gpu(user: dict[str, Any], result: Translation) -> None:
    gpu = user["gpu"]
    result.put_default("device", "cpu" if gpu == -1 else "auto", "gpu")


def _train_from(user: dict[str, Any], result: Translation) -> None:
    result.put("train_from", user["train_from"] or None, "train_from")


class Translator(NamedTuple):
    """How the value of one option is translated.

    Attributes:
        apply: Called with all of the user's options, and the translation to add to.
        meaning: The result in words, for the documentation.
    """

    apply: Callable[[dict[str, Any], Translation], None]
    meaning: str


TRANSLATORS = {
    "layers": Translator(_layers, "`encoder_layers` and `decoder_layers`"),
    "model_task": Translator(_model_task, "the same"),
    "encoder_type": Translator(
        _encoder_type, "`transformer` = `model_task: seq2seq`, unless `model_task` is set; the other encoders are gone"
    ),
    "decoder_type": Translator(
        _decoder_type, "`transformer`, or `transformer_lm` = `model_task: lm`; the other decoders are gone"
    ),
    "word_vec_size": Translator(partial(_width, "word_vec_size"), "must equal `hidden_size`"),
    "src_word_vec_size": Translator(partial(_width, "src_word_vec_size"), "must equal `hidden_size`"),
    "tgt_word_vec_size": Translator(partial(_width, "tgt_word_vec_size"), "must equal `hidden_size`"),
    "enc_hid_size": Translator(partial(_width, "enc_hid_size"), "must equal `hidden_size`"),
    "dec_hid_size": Translator(partial(_width, "dec_hid_size"), "must equal `hidden_size`"),
    **{
        key: Translator(partial(_rnn_size, key), "`hidden_size`, of Transformers only")
        for key in ("rnn_size", "enc_rnn_size", "dec_rnn_size")
    },
    "layer_norm": Translator(_layer_norm, "`norm`: `standard` = `layernorm`, `rms` = `rmsnorm`"),
    "pos_ffn_activation_fn": Translator(_activation, "`activation` and `ffn_gated`"),
    "max_relative_positions": Translator(
        _position, "`position`: -1 = `rotary`, -2 = `alibi`, above 0 = relative positions"
    ),
    "position_encoding": Translator(_position, "`position: sinusoidal`"),
    "relative_positions_buckets": Translator(_position, "`position: t5`"),
    "position_encoding_type": Translator(_position_type, "the order of sines and cosines"),
    "self_attn_type": Translator(
        _self_attn_type, "no effect: attention runs through torch's kernels; `average` is refused"
    ),
    "feat_merge": Translator(_feat_merge, "the same; `mlp` is gone"),
    "feat_vec_size": Translator(_feat_vec_size, "the same; -1 = null"),
    "multiquery": Translator(_kv_heads, "`kv_heads: 1`"),
    "num_kv": Translator(_kv_heads, "`kv_heads`"),
    "add_qkvbias": Translator(_qkv_bias, "`attn_bias` and `attn_out_bias`"),
    "rotary_theta": Translator(_rotary_theta, "`rope.theta`"),
    "rotary_dim": Translator(_rotary_dim, "`rope.rotary_dim`"),
    "num_experts": Translator(partial(_experts, "num_experts", "experts"), "`moe.experts`"),
    "num_experts_per_tok": Translator(
        partial(_experts, "num_experts_per_tok", "experts_per_token"), "`moe.experts_per_token`"
    ),
    "sliding_window": Translator(
        _sliding_window,
        "w tokens, including the token itself; w + 1, as OpenNMT-py trains, if `encoder_type` or `decoder_type` is set "
        "too; 0 = off",
    ),
    "model_dtype": Translator(_model_dtype, "the same; also float32, bfloat16, float16"),
    "optim": Translator(_optim, "the same names; `sparseadam` is not supported: embeddings have dense gradients"),
    "parallel_mode": Translator(_parallel_mode, "`tensor_parallel` = `world_size`; one process serves a model"),
    **{
        key: Translator(partial(_only, key), f"no effect: {reason}; other values are refused")
        for key, (_, reason) in _ONLY.items()
    },
    "random_sampling_topp": Translator(_nucleus, "the same; without `random_sampling_topk`, sample from all tokens"),
    "gpu": Translator(_gpu, "`device`: -1 = `cpu`"),
    "train_from": Translator(_train_from, "the same"),
}
"""By option, in the order in which they are applied."""
