"""Names and sentinel values of OpenNMT-py, and of other toolkits, in our words.

`translate` turns what the user wrote into our leaves before anything is validated. Plain renamings and the names that
are gone stand in the tables of `foreign.py`; here are the options whose values need translating. Nothing else knows
them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from onmt_llm.config.compat.names import ASKS_NOTHING, CORPUS_RENAMED, IGNORED, RENAMED, RETIRED

OPENNMT_LAYERS = {
    "linear_query": "q_proj",
    "linear_keys": "k_proj",
    "linear_values": "v_proj",
    "final_linear": "o_proj",
    "w_2": "down_proj",
    "w_3": "up_proj",
    "self_attn": "self_attn",
    "context_attn": "cross_attn",
    "feed_forward": "mlp",
}
"""OpenNMT-py's layer names. `w_1` is the gate of a gated feed-forward layer, else the up-projection."""

_ACTIVATIONS = {"gated-gelu": "gelu", "gated-gelu-tanh": "gelu_tanh", "fast_gelu": "gelu_tanh"}
_PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}


def layer_name(name: str, *, gated: bool) -> str:
    """The module name that OpenNMT-py's layer name stands for; any other name is returned as it is.

    Args:
        name: e.g. "linear_query", "context_attn.linear_query", "w_1" or already "q_proj".
        gated: The model's feed-forward layers are gated.
    """
    parts = []
    for part in name.split("."):
        if part == "w_1":
            parts.append("gate_proj" if gated else "up_proj")
        else:
            parts.append(OPENNMT_LAYERS.get(part, part))
    return ".".join(parts)


@dataclass
class Translation:
    """What `translate` made of the user's keys.

    Attributes:
        values: Our leaves. A value may be a partial mapping, to be merged (`rope`).
        sources: For each leaf the user's key that it came from, for messages.
        notes: Sentences to log: keys accepted without effect.
        errors: (user's key, sentence) pairs.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def put(self, leaf: str, value: Any, source: str) -> None:
        if isinstance(value, dict) and isinstance(self.values.get(leaf), dict):
            value = {**self.values[leaf], **value}
        self.values[leaf] = value
        self.sources.setdefault(leaf, source)

    def put_default(self, leaf: str, value: Any, source: str) -> None:
        if leaf not in self.values:
            self.put(leaf, value, source)


def translate(user: dict[str, Any], own: Collection[str] = ()) -> Translation:
    """Turn the keys that a user wrote, flat, into our leaves.

    Args:
        user: Keys and values.
        own: Leaves of the job: a name that means something to it is never one of OpenNMT-py's that are gone.
    """
    result = Translation()
    later: list[str] = []
    for key, value in user.items():
        if key in own and key not in _TRANSLATORS:
            result.put(key, _corpora(value) if key == "data" else value, key)
        elif key in RETIRED:
            if value not in (None, False, 0, "", "none", ASKS_NOTHING.get(key)):
                result.errors.append((key, f"'{key}' is an option of OpenNMT-py that is gone: {RETIRED[key]}."))
        elif key in IGNORED:
            result.notes.append((key, f"'{key}' has no effect: {IGNORED[key]}."))
        elif key in RENAMED:
            result.put(RENAMED[key], value, key)
        elif key in _TRANSLATORS:
            later.append(key)
        else:
            result.put(key, value, key)
    # after the plain keys, so that what the user spelt out in our words stands
    for key in _TRANSLATORS:
        if key not in later or user[key] is None:  # null is the default
            continue
        if isinstance(user[key], list | dict):
            noun = "list" if isinstance(user[key], list) else "mapping"
            result.errors.append((key, f"'{key}' must be a single value, but is a {noun}."))
        else:
            _TRANSLATORS[key](user, result)
    return result


def _corpora(data: Any) -> Any:
    """The entries of `data:` with the keys that Axolotl gives their columns in our words; what is spelt out stands."""
    if not isinstance(data, dict):
        return data
    return {name: _corpus(entry) if isinstance(entry, dict) else entry for name, entry in data.items()}


def _corpus(entry: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in entry.items() if key not in CORPUS_RENAMED}
    foreign = {CORPUS_RENAMED[key]: value for key, value in entry.items() if key in CORPUS_RENAMED}
    mappings = own.get("message_property_mappings")
    if isinstance(mappings, dict) and set(mappings) <= {"role", "content"}:
        foreign.update({f"{key}_key": value for key, value in mappings.items()})
        del own["message_property_mappings"]
    return {**foreign, **own}


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
            ("encoder_type", f"'encoder_type' must be transformer, but is '{kind}': the other encoders are retired.")
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
                f"'decoder_type' must be transformer or transformer_lm, but is '{kind}': other decoders are retired.",
            )
        )


def _width(key: str, user: dict[str, Any], result: Translation) -> None:
    """Sizes that RNN models had apart; a Transformer is as wide as its embeddings. -1 and 500 are defaults."""
    size = user[key]
    if size == -1 or (size == 500 and key != "word_vec_size"):
        return
    if key == "src_word_vec_size" and user.get("n_src_feats") and user.get("feat_merge", "concat") == "concat":
        return  # what the embeddings of the features leave of hidden_size
    if result.values.setdefault("hidden_size", size) != size:
        result.errors.append((key, f"'{key}' must equal hidden_size ({result.values['hidden_size']}), but is {size}."))
    result.sources.setdefault("hidden_size", key)


def _layer_norm(user: dict[str, Any], result: Translation) -> None:
    norms = {"rms": "rmsnorm", "standard": "layernorm"}
    if user["layer_norm"] in norms:
        result.put("norm", norms[user["layer_norm"]], "layer_norm")
    else:
        result.errors.append(("layer_norm", f"'layer_norm' must be standard or rms, but is '{user['layer_norm']}'."))


def _activation(user: dict[str, Any], result: Translation) -> None:
    name = str(user["pos_ffn_activation_fn"])
    result.put("activation", _ACTIVATIONS.get(name, name), "pos_ffn_activation_fn")
    # in OpenNMT-py these two bring the second input projection, w_3
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
            # OpenNMT-py's sinusoids are added to embeddings that were multiplied by sqrt(hidden_size)
            result.put_default("scale_embeddings", True, key)
    if user.get("position_encoding") and (relative or buckets):
        result.errors.append(
            (
                "position_encoding",
                "'position_encoding' must be false with relative positions (max_relative_positions, "
                "relative_positions_buckets): a model has positions of one kind.",
            )
        )


_SINUSOIDS = {"SinusoidalInterleaved": "standard", "SinusoidalConcat": "concat"}


def _position_type(user: dict[str, Any], result: Translation) -> None:
    kind = user["position_encoding_type"]
    if kind in _SINUSOIDS:
        # sines and cosines that alternate, or stand in two halves, are the same model under another order of dimensions
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
                "worse, and was made to save the decoding time that a key/value cache saves as well.",
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
            ("feat_merge", "'feat_merge' must be concat or sum, but is mlp, which is retired: concat is as good.")
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
    for leaf in ("attn_bias", "attn_out_bias"):  # OpenNMT-py's switch covers the output projection too
        result.put_default(leaf, user["add_qkvbias"], "add_qkvbias")


def _rotary_theta(user: dict[str, Any], result: Translation) -> None:
    result.put("rope", {"theta": user["rotary_theta"]}, "rotary_theta")


def _rotary_dim(user: dict[str, Any], result: Translation) -> None:
    result.put("rope", {"rotary_dim": user["rotary_dim"] or None}, "rotary_dim")


def _num_experts(user: dict[str, Any], result: Translation) -> None:
    if user["num_experts"]:
        result.errors.append(
            (
                "num_experts",
                f"'num_experts' must be 0, but is {user['num_experts']}: mixtures of experts are not built yet.",
            )
        )


def _sliding_window(user: dict[str, Any], result: Translation) -> None:
    window = user["sliding_window"] or None
    # With these a file describes OpenNMT-py's model, in which the token itself is not counted.
    named = next((key for key in ("encoder_type", "decoder_type") if user.get(key) is not None), None)
    if named and type(window) is int and window > 0:
        sentence = (
            f"'sliding_window' is {window + 1} here: with {named} in the configuration, its {window} is OpenNMT-py's, "
            "which does not count the token itself."
        )
        result.notes.append(("sliding_window", sentence))
        window += 1
    result.put("sliding_window", window, "sliding_window")


def _model_dtype(user: dict[str, Any], result: Translation) -> None:
    result.put("model_dtype", _PRECISION.get(str(user["model_dtype"]), user["model_dtype"]), "model_dtype")


def _optim(user: dict[str, Any], result: Translation) -> None:
    if user["optim"] == "sparseadam":
        sentence = (
            "'optim' must not be sparseadam, which is gone: it needs sparse gradients of the embeddings, but these are "
            "dense here, as they have to be where the output layer shares them; use adamw."
        )
        result.errors.append(("optim", sentence))
    else:
        result.put("optim", user["optim"], "optim")


def _gpu(user: dict[str, Any], result: Translation) -> None:
    gpu = user["gpu"]
    result.put_default("device", "cpu" if gpu == -1 else "auto", "gpu")


def _train_from(user: dict[str, Any], result: Translation) -> None:
    result.put("train_from", user["train_from"] or None, "train_from")


_TRANSLATORS: dict[str, Callable[[dict[str, Any], Translation], None]] = {
    "layers": _layers,
    "model_task": _model_task,
    "encoder_type": _encoder_type,
    "decoder_type": _decoder_type,
    "word_vec_size": partial(_width, "word_vec_size"),
    "src_word_vec_size": partial(_width, "src_word_vec_size"),
    "tgt_word_vec_size": partial(_width, "tgt_word_vec_size"),
    "enc_hid_size": partial(_width, "enc_hid_size"),
    "dec_hid_size": partial(_width, "dec_hid_size"),
    "layer_norm": _layer_norm,
    "pos_ffn_activation_fn": _activation,
    "max_relative_positions": _position,
    "position_encoding": _position,
    "relative_positions_buckets": _position,
    "position_encoding_type": _position_type,
    "self_attn_type": _self_attn_type,
    "feat_merge": _feat_merge,
    "feat_vec_size": _feat_vec_size,
    "multiquery": _kv_heads,
    "num_kv": _kv_heads,
    "add_qkvbias": _qkv_bias,
    "rotary_theta": _rotary_theta,
    "rotary_dim": _rotary_dim,
    "num_experts": _num_experts,
    "sliding_window": _sliding_window,
    "model_dtype": _model_dtype,
    "optim": _optim,
    "gpu": _gpu,
    "train_from": _train_from,
}
"""Keys whose value needs translating too."""


MEANINGS = {
    "layers": "`encoder_layers` and `decoder_layers`",
    "model_task": "the same",
    "encoder_type": "`transformer` = `model_task: seq2seq`, unless that is written; the other encoders are retired",
    "decoder_type": "`transformer`, or `transformer_lm` = `model_task: lm`; the other decoders are retired",
    "word_vec_size": "must equal `hidden_size`",
    "layer_norm": "`norm`: `standard` = `layernorm`, `rms` = `rmsnorm`",
    "pos_ffn_activation_fn": "`activation` and `ffn_gated`",
    "max_relative_positions": "`position`: -1 = `rotary`, -2 = `alibi`, above 0 = relative positions",
    "relative_positions_buckets": "`position: t5`",
    "position_encoding": "`position: sinusoidal`",
    "position_encoding_type": "the order of sines and cosines",
    "multiquery": "`kv_heads: 1`",
    "num_kv": "`kv_heads`",
    "add_qkvbias": "`attn_bias` and `attn_out_bias`",
    "rotary_theta": "`rope.theta`",
    "rotary_dim": "`rope.rotary_dim`",
    "num_experts": "0 only: mixtures of experts are not built yet",
    "sliding_window": "w tokens, the token itself among them; w + 1, as OpenNMT-py trains, where `encoder_type` or "
    "`decoder_type` is given too; 0 = off",
    "model_dtype": "the same; also float32, bfloat16, float16",
    "optim": "the same names; `sparseadam` is gone: embeddings have dense gradients",
    "gpu": "`device`: -1 = `cpu`",
    "train_from": "the same",
    "self_attn_type": "no effect: attention runs through torch's kernels; `average` is declined",
    "src_word_vec_size": "must equal `hidden_size`",
    "tgt_word_vec_size": "must equal `hidden_size`",
    "enc_hid_size": "must equal `hidden_size`",
    "dec_hid_size": "must equal `hidden_size`",
}
"""What the value of a translated option becomes."""


def known_names() -> set[str]:
    """Every foreign name that this module understands."""
    return {*RENAMED, *IGNORED, *RETIRED, *_TRANSLATORS}


def useful_names() -> set[str]:
    """Those of them that do something."""
    return known_names() - idle_names()


def idle_names() -> set[str]:
    """Those that do nothing: nobody means them by another name."""
    return {*IGNORED, *RETIRED}


def answer(name: str) -> str | None:
    """One sentence, for people, on what becomes of a foreign name; None where this module does not know it."""
    if name in RENAMED:
        return f"accepted: `{RENAMED[name]}`"
    if name in IGNORED:
        return f"accepted without effect: {IGNORED[name]}"
    if name in RETIRED:
        return f"gone: {RETIRED[name]}"
    if name in _TRANSLATORS:
        return f"accepted: {MEANINGS.get(name, 'its value is translated')}"
    return None
