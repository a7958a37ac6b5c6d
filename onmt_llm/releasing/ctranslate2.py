"""CTranslate2 releases: our `ModelConfig` and tensors into a `TransformerDecoderModelSpec`, through a table of rules.

The stock OpenNMT-py converter knows no rotary base, no partial rotary, no parallel residual, and pickles besides, so
the spec is built here. Weights are streamed: a variable of the spec is a promise that is read, fused, quantised and
written when its turn comes, and the memory needed is that of the largest layer, not of the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ctranslate2 import specs
from ctranslate2.specs import common_spec, model_spec

from onmt_llm.checkpoint.atomic import AtomicDirectory
from onmt_llm.checkpoint.load import check_fits, expected_shapes
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.nn.positions import build_sinusoidal_table
from onmt_llm.releasing.formats import FORMATS, Report, Verify
from onmt_llm.releasing.verify import verify_release
from onmt_llm.text.codec import Codec

Kind = Literal["matrix", "vector"]

_ACTIVATIONS = {
    "relu": common_spec.Activation.RELU,
    "gelu": common_spec.Activation.GELU,
    "gelu_tanh": common_spec.Activation.GELUTanh,
    "silu": common_spec.Activation.SWISH,
}
_ROPE_SCALING = {
    "linear": specs.attention_spec.RotaryScalingType.Linear,
    "llama3": specs.attention_spec.RotaryScalingType.Llama3,
}
_INT8 = ("int8", "int8_float32", "int8_float16", "int8_bfloat16")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1}
_LARGEST_VARIABLE = 2**32 - 1
"""CTranslate2's file format counts a variable's bytes in 32 bits."""


@FORMATS.register("ctranslate2")
def release_ctranslate2(
    checkpoint: Checkpoint, output: Path, *, quantization: str | None, verify: Verify, text: str | None, force: bool
) -> Report:
    """Write a directory that `ctranslate2.Generator` and `open_engine` load; see `release`."""
    quantization = quantization or "float32"
    if quantization not in model_spec.ACCEPTED_MODEL_TYPES:
        known = ", ".join(model_spec.ACCEPTED_MODEL_TYPES)
        raise ConfigError(f"quantization must be one of {known}, but is '{quantization}'.")
    codec = checkpoint.codec()
    problems = inexpressible(checkpoint.config.model, len(codec.vocab), quantization)
    if problems:
        raise UnsupportedError(
            f"The format ctranslate2 cannot hold {checkpoint.path}: {'; '.join(problems)}.",
            hint="use --format safetensors",
        )
    with AtomicDirectory(output, overwrite=force) as release:
        with release.translated_errors():
            write_model(checkpoint, codec, release.directory, quantization=quantization)
            codec.copy_files(release.directory)
        return verify_release(checkpoint.path, release.directory, quantization=quantization, verify=verify, text=text)


def inexpressible(config: ModelConfig, vocab_size: int, quantization: str) -> list[str]:
    """What of an architecture CTranslate2's decoder cannot express, each with the option's name."""
    problems = []
    if config.encoder_layers:
        problems.append(f"encoder_layers is {config.encoder_layers}, and this format is for decoder-only models")
    if config.decoder_layers < 1:
        problems.append("decoder_layers is 0")
    if config.position == "none":
        problems.append("position is none, and CTranslate2 always encodes positions")
    if vocab_size > config.vocab_size:
        problems.append(f"the vocabulary has {vocab_size} tokens, but vocab_size is {config.vocab_size}")
    largest = max(config.vocab_size, config.ffn_size) * config.hidden_size * _BYTES[_stored(quantization, "matrix")]
    if largest > _LARGEST_VARIABLE:
        problems.append(
            f"its largest matrix has {largest:,} bytes in {quantization}, and a file holds {_LARGEST_VARIABLE:,}"
        )
    return problems


def write_model(checkpoint: Checkpoint, codec: Codec, directory: Path, *, quantization: str) -> None:
    """Write model.bin, config.json and vocabulary.json.

    Raises:
        CheckpointError: The checkpoint's tensors are not those that its configuration calls for.
    """
    config = checkpoint.config.model
    check_fits(checkpoint, expected_shapes(config))
    source = _Source(checkpoint, quantization)
    spec = build_spec(config)
    for rule in rules_for(config):
        _fill(spec, rule, source)
    spec.register_vocabulary(_vocabulary(codec, config.vocab_size))
    _set_config(spec.config, codec, config)
    spec.validate()
    spec.optimize()  # without a quantisation this only finds variables that are the same one: tied embeddings
    spec.save(str(directory))


def build_spec(config: ModelConfig) -> Any:
    """An empty `TransformerDecoderModelSpec` of this architecture."""
    rotary: dict[str, Any] = {}
    if config.position == "rotary":
        rope = config.rope
        rotary = {
            "rotary_dim": config.rotary_size,
            "rotary_interleave": False,
            "rotary_base": rope.theta,
            "rotary_scaling_type": _ROPE_SCALING.get(rope.scaling),
            "rotary_scaling_factor": rope.factor,
        }
        if rope.scaling == "llama3":
            rotary["original_max_position_embeddings"] = rope.original_max_position
    spec = specs.TransformerDecoderModelSpec.from_config(
        config.decoder_layers,
        config.heads,
        pre_norm=config.norm_position == "pre",
        activation=_ACTIVATIONS[config.activation],
        ffn_glu=config.ffn_gated,
        rms_norm=config.norm == "rmsnorm",
        alibi=config.position == "alibi",
        scale_alibi=config.alibi_scaled,
        parallel_residual=config.parallel_residual,
        shared_layer_norm=config.shared_norm,
        num_heads_kv=config.num_kv_heads if config.num_kv_heads != config.heads else None,
        head_dim=config.size_per_head,
        sliding_window=config.sliding_window,
        qk_norm=config.qk_norm,
        **rotary,
    )
    spec.decoder.scale_embeddings = config.scale_embeddings
    for layer in spec.decoder.layer:
        _complete_layer(layer, config)
    return spec


def _complete_layer(layer: Any, config: ModelConfig) -> None:
    """What the library's constructor leaves out."""
    if config.parallel_residual and config.norm == "rmsnorm":
        for name in ("shared_layer_norm",) if config.shared_norm else ("input_layer_norm", "post_attention_layer_norm"):
            setattr(layer, name, common_spec.LayerNormSpec(rms_norm=True))
    if config.position == "rotary" and config.rope.scaling == "llama3":
        attention, rope = layer.self_attention, config.rope
        attention.rotary_low_freq_factor = np.float32(rope.low_freq_factor)
        attention.rotary_high_freq_factor = np.float32(rope.high_freq_factor)
        # The library reads this attribute for llama3 too, but declares it only for linear scaling; specs refuse
        # undeclared names.
        object.__setattr__(attention, "rotary_scaling_factor", np.float32(rope.factor))


@dataclass(frozen=True)
class Rule:
    """One variable of the spec.

    Attributes:
        target: Path in the spec.
        sources: Our tensors, whose rows are put one below the other; none = made by `make`.
        kind: "matrix" is quantised with the weights, "vector" is not.
        make: The value of a variable that has no tensor.
    """

    target: str
    sources: tuple[str, ...] = ()
    kind: Kind = "vector"
    make: Callable[[], np.ndarray] | None = None


def rules_for(config: ModelConfig) -> Iterator[Rule]:
    """All variables of a decoder-only model's spec, and the tensors they are made of."""
    embedding = "decoder.embed_tokens.weight"
    yield Rule("decoder/embeddings/weight", (embedding,), "matrix")
    yield Rule("decoder/projection/weight", (embedding if config.tie_embeddings else "lm_head.weight",), "matrix")
    if config.lm_head_bias:
        yield Rule("decoder/projection/bias", ("lm_head.bias",))
    if config.position == "learned":
        yield Rule("decoder/position_encodings/encodings", ("decoder.embed_positions.weight",))
    elif config.position == "sinusoidal":
        # Its own sinusoids start at position 1 and have another spacing, so ours are written out.
        yield Rule("decoder/position_encodings/encodings", make=functools.partial(_sinusoids, config))
    if config.norm_position == "pre":
        yield from _norm(config, "decoder/layer_norm", "decoder.norm")
    for layer in range(config.decoder_layers):
        yield from _layer(config, f"decoder/layer_{layer}", f"decoder.layers.{layer}")


def _layer(config: ModelConfig, target: str, source: str) -> Iterator[Rule]:
    attn, mlp = f"{source}.self_attn", f"{source}.mlp"
    qkv = (f"{attn}.q_proj", f"{attn}.k_proj", f"{attn}.v_proj")
    yield from _linear(f"{target}/self_attention/linear_0", qkv, bias=config.attn_bias)
    yield from _linear(f"{target}/self_attention/linear_1", (f"{attn}.o_proj",), bias=config.attn_out_bias)
    if config.qk_norm:
        yield Rule(f"{target}/self_attention/q_norm/gamma", (f"{attn}.q_norm.weight",))
        yield Rule(f"{target}/self_attention/k_norm/gamma", (f"{attn}.k_norm.weight",))
    if config.ffn_gated:
        yield from _linear(f"{target}/ffn/linear_0", (f"{mlp}.gate_proj",), bias=config.ffn_bias)
        yield from _linear(f"{target}/ffn/linear_0_noact", (f"{mlp}.up_proj",), bias=config.ffn_bias)
    else:
        yield from _linear(f"{target}/ffn/linear_0", (f"{mlp}.up_proj",), bias=config.ffn_bias)
    yield from _linear(f"{target}/ffn/linear_1", (f"{mlp}.down_proj",), bias=config.ffn_bias)
    if config.shared_norm:
        yield from _norm(config, f"{target}/shared_layer_norm", f"{source}.attn_norm")
    elif config.parallel_residual:
        yield from _norm(config, f"{target}/input_layer_norm", f"{source}.attn_norm")
        yield from _norm(config, f"{target}/post_attention_layer_norm", f"{source}.mlp_norm")
    else:
        yield from _norm(config, f"{target}/self_attention/layer_norm", f"{source}.attn_norm")
        yield from _norm(config, f"{target}/ffn/layer_norm", f"{source}.mlp_norm")


def _linear(target: str, sources: tuple[str, ...], *, bias: bool) -> Iterator[Rule]:
    yield Rule(f"{target}/weight", tuple(f"{source}.weight" for source in sources), "matrix")
    if bias:
        yield Rule(f"{target}/bias", tuple(f"{source}.bias" for source in sources))


def _norm(config: ModelConfig, target: str, source: str) -> Iterator[Rule]:
    yield Rule(f"{target}/gamma", (f"{source}.weight",))
    if config.norm == "layernorm" and config.norm_bias:
        yield Rule(f"{target}/beta", (f"{source}.bias",))
    elif config.norm == "layernorm":
        # A norm without beta would be taken for an RMSNorm.
        yield Rule(f"{target}/beta", make=functools.partial(np.zeros, config.hidden_size, dtype=np.float32))


def _sinusoids(config: ModelConfig) -> np.ndarray:
    return build_sinusoidal_table(config.hidden_size, config.max_position, torch.device("cpu")).numpy()


class _Source:
    """Reads tensors as float32, fuses them, and lets CTranslate2 quantise them; keeps the last result only."""

    def __init__(self, checkpoint: Checkpoint, quantization: str) -> None:
        self._checkpoint = checkpoint
        self.quantization = quantization
        self._last: tuple[Rule, Any] | None = None

    def shape(self, rule: Rule) -> tuple[int, ...]:
        if rule.make is not None:
            return rule.make().shape
        shapes = [self._checkpoint.shape(name) for name in rule.sources]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def stored(self, rule: Rule) -> Any:
        """A `LinearSpec` (weight and, with integers, weight_scale) or a `LayerNormSpec` (gamma) in its final type.

        The library's own quantisation of a layer spec is used, so that the numbers are those that it expects. It works
        in place: the array that it is given is always one of our own, never the checkpoint's.
        """
        if self._last is None or self._last[0].sources != rule.sources or rule.make is not None:
            array = np.array(rule.make()) if rule.make is not None else self._read(rule)
            holder = common_spec.LinearSpec() if rule.kind == "matrix" else common_spec.LayerNormSpec(rms_norm=True)
            setattr(holder, "weight" if rule.kind == "matrix" else "gamma", array)
            holder.validate()
            holder.optimize(self.quantization)
            self._last = (rule, holder)
        return self._last[1]

    def _read(self, rule: Rule) -> np.ndarray:
        parts = [self._checkpoint.tensor(name).float() for name in rule.sources]
        return (torch.cat(parts) if len(parts) > 1 else parts[0].clone()).contiguous().numpy()


class StreamedVariable(model_spec.Variable):
    """A variable whose content is made when the file is written.

    Args:
        identity: Two variables with equal identities hold the same numbers, and are written once.
        shape: Its shape.
        dtype: CTranslate2's name of its type.
        make: Gives the variable with its content.
    """

    def __init__(self, identity: object, shape: tuple[int, ...], dtype: str, make: Callable[[], Any]) -> None:
        self._identity = identity
        self._shape = shape
        self._dtype = dtype
        self._make = make

    @property
    def shape(self) -> list[int]:
        return list(self._shape)

    @property
    def dtype(self) -> str:
        return self._dtype

    def numpy(self) -> np.ndarray:
        return self._make().numpy()

    def num_bytes(self) -> int:
        return math.prod(self._shape) * _BYTES[self._dtype]

    def to_bytes(self) -> bytes:
        variable = self._make()
        assert variable.dtype == self._dtype and tuple(variable.shape) == self._shape
        return variable.to_bytes()

    def _to(self, dtype: str) -> model_spec.Variable:
        raise AssertionError("the content is converted before it becomes a variable")

    def _equal(self, other: Any) -> bool:
        return self._identity == other._identity


def _fill(spec: Any, rule: Rule, source: _Source) -> None:
    """Put promises for a rule's content into the spec."""
    scope, attribute = rule.target.rsplit("/", 1)
    layer = model_spec.index_spec(spec, scope)
    shape, dtype = source.shape(rule), _stored(source.quantization, rule.kind)
    content = "weight" if rule.kind == "matrix" else "gamma"
    setattr(layer, attribute, _promise(source, rule, content, shape, dtype))
    if dtype == "int8":
        setattr(layer, f"{attribute}_scale", _promise(source, rule, "weight_scale", shape[:1], "float32"))
    elif dtype == "int16":
        setattr(layer, f"{attribute}_scale", _promise(source, rule, "weight_scale", (), "float32"))


def _promise(source: _Source, rule: Rule, attribute: str, shape: tuple[int, ...], dtype: str) -> StreamedVariable:
    identity = (attribute, rule.sources or rule.target)
    return StreamedVariable(identity, shape, dtype, lambda: getattr(source.stored(rule), attribute))


def _stored(quantization: str, kind: Kind) -> str:
    """Type in which CTranslate2 stores matrices and vectors for a quantisation."""
    if kind == "matrix":
        return "int8" if quantization in _INT8 else quantization
    half = quantization.removeprefix("int8_")
    return half if half in ("float16", "bfloat16") else "float32"


def _vocabulary(codec: Codec, size: int) -> list[str]:
    """The tokens, with names for rows of the embedding that have no token."""
    tokens = list(codec.vocab)
    return tokens + [f"｟unused {row}｠" for row in range(len(tokens), size)]


def _set_config(target: Any, codec: Codec, config: ModelConfig) -> None:
    """Special tokens and epsilon. CTranslate2 wants all three tokens; for one that we lack another stands in."""
    specials, tokens = codec.vocab.specials, [token for token in codec.stop_tokens if token in codec.vocab]
    stand_in = next((token for token in (specials.eos, *tokens, specials.bos) if token in codec.vocab), codec.vocab[0])
    for role in ("unk", "bos", "eos"):
        token = getattr(specials, role)
        setattr(target, f"{role}_token", token if token in codec.vocab else stand_in)
    target.layer_norm_epsilon = config.norm_eps
