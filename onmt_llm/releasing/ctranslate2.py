"""Write CTranslate2 releases of language models and encoder-decoder models, verified against the model.

A variable of the spec is read, fused and quantised only when it is written, a few rows at a time, so the memory needed
is that of the largest variable as it is stored in the release.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from ctranslate2.specs import model_spec

from onmt_llm.atomic import AtomicDirectory, write_text
from onmt_llm.checkpoint.directory import MANIFEST_FILE, manifest_text
from onmt_llm.checkpoint.export_guard import obstacles
from onmt_llm.checkpoint.files.blocks import tensor_bytes, with_rows
from onmt_llm.checkpoint.progress import TensorProgress
from onmt_llm.checkpoint.provenance import copy_provenance
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import CONFIG_FILE, config_text
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.generate.ct2.model import REPORT_FILE
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.releasing.calibration import Calibration
from onmt_llm.releasing.channels import scaled
from onmt_llm.releasing.ct2_spec import (
    BYTES,
    EXPRESSIBLE,
    SpecVariable,
    build_spec,
    oversized,
    spec_variables,
    stored_type,
)
from onmt_llm.releasing.int8 import float_variables, int8_rows, prepared
from onmt_llm.releasing.number_format import NumberFormat
from onmt_llm.releasing.verify import ReleaseReport, Verify, verify_release
from onmt_llm.text.codec import Codec
from onmt_llm.text.vocab import Vocab

_FLOAT = "unquantized"
"""Name in the file of a `weight` that stays in float."""
INT16_LIMIT = 1 << 10
"""With 10 bits each, products have 20 bits, and 12 are left to add them up."""


def release_ctranslate2(
    checkpoint: Checkpoint, output: Path, *, numbers: NumberFormat, verify: Verify, text: str | None, force: bool
) -> ReleaseReport:
    """Write a directory for `ctranslate2.Generator` or `Translator`, and for `open_engine`; see `release`."""
    quantization, codec = numbers.quantization or "float32", Codec.open(checkpoint.path)
    _check(checkpoint, codec, quantization)
    quality, source = prepared(checkpoint, numbers)
    keep_float = float_variables(source.config.model, numbers.keep_float)
    with AtomicDirectory(output, overwrite=force) as release:
        scaled_on = 0
        if quality != "plain" and "down_proj" not in numbers.keep_float:
            source, scaled_on = scaled(source, checkpoint, codec)
        with release.translated_errors():
            with TemporaryDirectory(dir=release.directory.parent, prefix=".calibration-") as scratch:
                calibration = None
                if numbers.calibration is not None:
                    calibration = Calibration(source, numbers.calibration, Path(scratch), skipped=keep_float)
                write_model(
                    *(source, codec, release.directory),
                    quantization=quantization,
                    keep_float=keep_float,
                    calibration=calibration,
                )
            _add_text_side(checkpoint, codec, release.directory)
            copy_provenance(checkpoint.path, release.directory)
        packages = {name: version(name) for name in ("ctranslate2", "torch", "numpy")}
        report: ReleaseReport = {
            "format": "ctranslate2",
            "source": str(checkpoint.path),
            "quantization": quantization,
            **({"quality": quality, "keep_float": list(numbers.keep_float)} if numbers.is_int8 else {}),
            **({"channel_scales": f"{scaled_on} tokens of the package's channel_text.txt"} if scaled_on else {}),
            "versions": {"python": platform.python_version(), **packages},
        }
        if verify == "off":
            report["verdict"] = "not verified"
        else:
            made = replace(numbers, quality=quality, quantization=quantization)
            report |= _verified(checkpoint, codec, release.directory, made, strict=verify == "strict", text=text)
        with release.translated_errors():
            release.add_text(REPORT_FILE, json.dumps(report, indent=2) + "\n")
            release.add_text(MANIFEST_FILE, manifest_text(release.directory))
        return report


def _check(checkpoint: Checkpoint, codec: Codec, quantization: str) -> None:
    """Refuse a quantisation or a model that CTranslate2 does not have."""
    if quantization not in model_spec.ACCEPTED_MODEL_TYPES:
        known = ", ".join(model_spec.ACCEPTED_MODEL_TYPES)
        raise ConfigError(f"quantization must be one of {known}, but is '{quantization}'.")
    problems = obstacles(checkpoint.config.model, EXPRESSIBLE)
    too_large = oversized(checkpoint.config.model, quantization)
    problems += [too_large] if too_large else []
    starts = codec.fixed_start is not None or checkpoint.config.sequences.decoder_start
    if not checkpoint.config.model.is_decoder_only and not starts:
        problems.append("no token starts its targets: specials.bos is not in the vocabulary")
    if problems:
        raise UnsupportedError(
            f"The format ctranslate2 cannot hold {checkpoint.path}: {'; '.join(problems)}.",
            hint="use --format safetensors",
        )


def _verified(
    checkpoint: Checkpoint, codec: Codec, directory: Path, numbers: NumberFormat, *, strict: bool, text: str | None
) -> ReleaseReport:
    """See `verify_release`; with `compare_plain` it measures a plain release too, which is made for that."""
    with TemporaryDirectory(dir=directory.parent, prefix=".plain-") as scratch:
        plain = None
        if numbers.compare_plain and numbers.quality != "plain":
            plain = Path(scratch)
            quantization = numbers.quantization or "float32"
            write_model(checkpoint, codec, plain, quantization=quantization)
            _add_text_side(checkpoint, codec, plain)
        return verify_release(checkpoint.path, directory, numbers, strict=strict, text=text, plain=plain)


def _add_text_side(checkpoint: Checkpoint, codec: Codec, directory: Path) -> None:
    """Write what an engine needs besides the model."""
    write_text(directory / CONFIG_FILE, config_text(checkpoint.config))
    codec.copy_files(directory)


def write_model(
    checkpoint: Checkpoint,
    codec: Codec,
    directory: Path,
    *,
    quantization: str,
    keep_float: Collection[str] = (),
    calibration: Calibration | None = None,
) -> None:
    """Write model.bin, config.json and the vocabularies.

    Args:
        checkpoint: The model.
        codec: Its vocabularies.
        directory: Where the files are written.
        quantization: Number format.
        keep_float: Targets of the matrices that are not quantised.
        calibration: Holds matrices that are rounded already.

    Raises:
        CheckpointError: The checkpoint's tensors do not match its configuration.
    """
    config = checkpoint.config.model
    shapes = parameter_shapes(config)
    checkpoint.check_fits(shapes)
    progress = checkpoint.progress("release")
    tensors = QuantizedTensors(checkpoint, shapes, quantization, progress, calibration)
    spec = build_spec(config)
    for variable in spec_variables(config):
        fill(spec, replace(variable, kind="vector") if variable.target in keep_float else variable, tensors)
    _set_special_tokens(spec.config, codec)
    spec.config.layer_norm_epsilon = config.norm_eps
    if config.is_decoder_only:
        spec.register_vocabulary(_tokens(codec.vocab, config.vocab_size))
    else:
        spec.register_target_vocabulary(_tokens(codec.vocab, config.vocab_size))
        spec.register_source_vocabulary(_tokens(codec.src_vocab, config.encoder_vocab_size))
        for vocab, feature in zip(codec.feature_vocabs, config.src_features, strict=True):
            spec.register_source_vocabulary(_tokens(vocab, feature.vocab_size))
        # without one, CTranslate2 takes the first token of the prefix that each call gives
        spec.config.decoder_start_token = codec.fixed_start
        layer, heads = checkpoint.config.alignment_layer, checkpoint.config.alignment_heads
        spec.decoder.alignment_layer = np.int16(layer % config.decoder_layers)
        spec.decoder.alignment_heads = np.int16(heads or config.heads)
    spec.validate()
    spec.optimize()  # without a quantisation, this only finds shared variables: tied embeddings
    for target in keep_float:
        _hide_from_quantization(spec, target)
    with progress:
        spec.save(str(directory))


def _hide_from_quantization(spec: Any, target: str) -> None:
    """Store a weight under another name, with an alias.

    CTranslate2 quantises every variable called `weight` when it loads an int8 model, and resolves aliases afterwards.
    """
    scope, attribute = target.rsplit("/", 1)
    layer = model_spec.index_spec(spec, scope)
    object.__setattr__(layer, _FLOAT, getattr(layer, attribute))  # specs refuse undeclared names
    setattr(layer, attribute, f"{scope}/{_FLOAT}")


def _tokens(vocab: Vocab, size: int) -> list[str]:
    """The tokens, with placeholder names for embedding rows without a token."""
    tokens = list(vocab)
    return tokens + [f"｟unused {row}｠" for row in range(len(tokens), size)]


def _set_special_tokens(target: Any, codec: Codec) -> None:
    """Set unk, bos and eos. CTranslate2 requires all three, so another token replaces a missing one."""
    specials = codec.vocab.specials
    candidates = (specials.eos, *codec.stop_tokens, specials.bos, *codec.vocab)
    substitute = next(token for token in candidates if token in codec.vocab)
    for role in ("unk", "bos", "eos"):
        token = getattr(specials, role)
        setattr(target, f"{role}_token", token if token in codec.vocab else substitute)


class Stored(NamedTuple):
    """The content of a variable as CTranslate2 stores it: values and, of integers, what they were multiplied by."""

    values: torch.Tensor
    scales: torch.Tensor | None = None


class QuantizedTensors:
    """Reads tensors, fuses and quantises them block by block. Caches only the last result.

    Args:
        checkpoint: Holds the tensors.
        shapes: Their shapes by name.
        quantization: Number format of the release.
        progress: Counts what is written.
        calibration: Holds matrices that are rounded already.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        shapes: Mapping[str, tuple[int, ...]],
        quantization: str,
        progress: TensorProgress,
        calibration: Calibration | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._progress = progress
        self._shapes = shapes
        self.quantization = quantization
        self._calibration = calibration
        self._last: tuple[SpecVariable, Stored] | None = None

    def shape(self, variable: SpecVariable) -> tuple[int, ...]:
        if variable.make is not None:
            return variable.make().shape
        shapes = [self._shapes[name] for name in variable.sources]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def stored(self, variable: SpecVariable) -> Stored:
        """A variable in its final type."""
        last = None if self._last is None else self._last[0]
        if last is None or (last.sources, last.kind) != (variable.sources, variable.kind) or variable.make is not None:
            self._last = None  # before the next one is made
            self._last = (variable, self._convert(variable))
            self._progress.add(*map(self._checkpoint.nbytes, variable.sources))
        assert self._last is not None
        return self._last[1]

    def _convert(self, variable: SpecVariable) -> Stored:
        dtype = stored_type(self.quantization, variable.kind)
        if dtype == "int8" and self._calibration is not None and (rounded := self._calibration.rounded(variable)):
            return Stored(*rounded)
        values = torch.empty(self.shape(variable), dtype=getattr(torch, dtype))
        if dtype == "int16":
            scale = INT16_LIMIT / torch.stack([block.abs().max() for block in self._blocks(variable)]).max()
            _fill(values, (block.mul_(scale).round_() for block in self._blocks(variable)))
            return Stored(values, scale)
        if dtype != "int8":
            _fill(values, self._blocks(variable))
            return Stored(values)
        scales = torch.empty(len(values))
        for rows, block in with_rows(self._blocks(variable)):
            values[rows], scales[rows] = int8_rows(block)
        return Stored(values, scales)

    def _blocks(self, variable: SpecVariable) -> Iterator[torch.Tensor]:
        """Consecutive rows in float32, in memory of their own."""
        if variable.make is not None:
            yield torch.from_numpy(np.array(variable.make(), dtype=np.float32))
        for name in variable.sources:
            for block in self._checkpoint.blocks(name):
                yield block.float().mul_(variable.factor)


def _fill(values: torch.Tensor, blocks: Iterable[torch.Tensor]) -> None:
    """Copy blocks of rows, one after the other."""
    for rows, block in with_rows(blocks):
        values[rows] = block


class StreamedVariable(model_spec.Variable):
    """A variable whose content is computed when the file is written.

    Args:
        identity: Variables with equal identities have the same content and are written once.
        shape: Its shape.
        dtype: CTranslate2's name of its type.
        make: Computes its content.
    """

    def __init__(self, identity: object, shape: tuple[int, ...], dtype: str, make: Callable[[], torch.Tensor]) -> None:
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
        raise AssertionError("the content is only written")

    def num_bytes(self) -> int:
        return math.prod(self._shape) * BYTES[self._dtype]

    def to_bytes(self) -> memoryview:
        """The content, without a copy of it."""
        content = self._make()
        assert content.dtype == getattr(torch, self._dtype) and content.shape == self._shape
        return tensor_bytes(content)

    def _to(self, dtype: str) -> model_spec.Variable:
        raise AssertionError("the content is converted before it becomes a variable")

    def _equal(self, other: Any) -> bool:
        return self._identity == other._identity


def fill(spec: Any, variable: SpecVariable, source: QuantizedTensors) -> None:
    """Set a variable of the spec, to be computed when it is written."""
    scope, attribute = variable.target.rsplit("/", 1)
    layer = model_spec.index_spec(spec, scope)
    shape, dtype = source.shape(variable), stored_type(source.quantization, variable.kind)
    setattr(layer, attribute, _streamed(source, variable, "values", shape, dtype))
    if dtype in ("int8", "int16"):
        scales = shape[:1] if dtype == "int8" else ()
        setattr(layer, f"{attribute}_scale", _streamed(source, variable, "scales", scales, "float32"))


def _streamed(
    source: QuantizedTensors, variable: SpecVariable, part: str, shape: tuple[int, ...], dtype: str
) -> StreamedVariable:
    made = (variable.make.func, variable.make.args, variable.make.keywords) if variable.make is not None else None
    identity = (part, dtype, variable.sources, made)
    return StreamedVariable(identity, shape, dtype, lambda: getattr(source.stored(variable), part))
