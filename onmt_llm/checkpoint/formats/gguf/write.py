"""Write GGUF files, llama.cpp's format: the architectures of `architectures`, read backwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from onmt_llm.atomic import atomic_file, check_output_file, write_text
from onmt_llm.checkpoint.export_guard import Check, anything, obstacles, only, open_for_export, settings, where
from onmt_llm.checkpoint.files.blocks import return_freed_memory
from onmt_llm.checkpoint.formats.gguf import t5
from onmt_llm.checkpoint.formats.gguf.architectures import (
    ARCHITECTURES,
    MODEL_TYPES,
    layout,
    rules,
    shown_by_tensors,
)
from onmt_llm.checkpoint.formats.gguf.modelfile import modelfile
from onmt_llm.checkpoint.formats.gguf.number_types import (
    FILE_TYPES,
    LLAMA_CPP,
    LLAMA_CPP_TYPES,
    UNQUANTIZED,
    QuantizedRows,
    quantize_by_llama_cpp,
    size_in_bytes,
    tensor_type,
)
from onmt_llm.checkpoint.formats.gguf.tokenizer_keys import tokenizer_keys
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.families.base import Values
from onmt_llm.checkpoint.formats.rules import apply, shapes
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.optional import require
from onmt_llm.version import __version__

_NO_BIASES = dict.fromkeys(("attn_bias", "attn_out_bias", "ffn_bias"), only(False))
_NO_ATTENTION_BIASES = dict.fromkeys(("attn_bias", "attn_out_bias"), only(False))
_TIED, _UNTIED = {"tie_embeddings": only(True)}, {"tie_embeddings": only(False)}
_HEADS_FILL_WIDTH = {"head_dim": only(None)}
_NO_DENSE_LAYERS = {"moe.dense_layers": only([])}
LOADED: Mapping[str, Mapping[str, Check]] = {
    "qwen2": _HEADS_FILL_WIDTH,
    "qwen3": {"attn_out_bias": only(False)},
    "gemma": {**_TIED, **_NO_ATTENTION_BIASES},
    "gemma2": {**_TIED, **_NO_ATTENTION_BIASES},
    "gemma3": _NO_ATTENTION_BIASES,
    "smollm3": {"attn_out_bias": only(False), "ffn_bias": only(False)},
    "olmo2": {**_UNTIED, **_HEADS_FILL_WIDTH, **_NO_ATTENTION_BIASES},
    "command-r": {**_TIED, **_HEADS_FILL_WIDTH, **_NO_ATTENTION_BIASES},
    "cohere2": {**_TIED, **_HEADS_FILL_WIDTH, **_NO_ATTENTION_BIASES},
    "qwen2moe": {
        **{**_UNTIED, **_HEADS_FILL_WIDTH, **_NO_DENSE_LAYERS},
        "moe.shared_size": where(lambda config: config.moe.shared_size > 0),
    },
    "qwen3moe": {"attn_out_bias": only(False), **_NO_DENSE_LAYERS},
    "olmoe": {**_UNTIED, **_HEADS_FILL_WIDTH, **_NO_ATTENTION_BIASES, "kv_heads": only(None)},
    "phi2": _UNTIED,
    "gptneox": {**dict.fromkeys(_NO_BIASES, only(True)), **_UNTIED},
    "falcon": _NO_BIASES,
    "stablelm": _UNTIED,
    "starcoder2": {"attn_out_bias": only(True), "ffn_bias": only(True)},
    "nemotron": {**_UNTIED, **_HEADS_FILL_WIDTH},
    "arcee": {"attn_out_bias": only(False), "ffn_bias": only(False)},
    "ernie4_5": {"ffn_bias": only(False)},
    "chatglm": _HEADS_FILL_WIDTH,
    "gpt-oss": {**_UNTIED, **dict.fromkeys(("attn_out_bias", "ffn_bias", "moe.router_bias"), only(True))},
    "deepseek2": {
        **_NO_ATTENTION_BIASES,
        "latent.q_rank": where(lambda config: config.latent.q_rank > 0 or config.decoder_layers in (26, 27)),
    },
}
"""What llama.cpp requires of the tensors of an architecture, where models of transformers may have others.
(`create_tensor` in https://github.com/ggml-org/llama.cpp/tree/master/src/models)"""
_WINDOW_LEFT_OUT = ("phi3",)
"""Architectures that have a sliding window which llama.cpp does not compute."""


def export_gguf(
    checkpoint: Checkpoint | str | Path, output: str | Path, *, type: str = "f16", overwrite: bool = False
) -> Path:
    """Write a checkpoint as one GGUF file, one tensor in memory at a time.

    Args:
        checkpoint: A whole model; merge an adapter first.
        output: The file to write; `.gguf` is appended if it is missing.
        type: Number type of the matrices, a name in `FILE_TYPES` or, with the package `cyllama`, in `LLAMA_CPP_TYPES`.
            Vectors, norms, learned positions and routers are float32; see `tensor_type`.
        overwrite: Replace a file at `output`.

    Raises:
        CheckpointError: The checkpoint holds an adapter, or the output exists.
        ConfigError: Unknown type.
        UnsupportedError: No architecture of llama.cpp computes this model, or none of its tokenisers splits its text.
    """
    if type not in (*FILE_TYPES, *LLAMA_CPP_TYPES):
        known = ", ".join((*FILE_TYPES, *LLAMA_CPP_TYPES))
        raise ConfigError(f"The type of a GGUF file must be one of {known}, but is '{type}'.")
    require("gguf", "writing a GGUF file")
    if type in LLAMA_CPP_TYPES:
        require(LLAMA_CPP, f"The type {type}")
    output = Path(output) if str(output).endswith(".gguf") else Path(f"{output}.gguf")
    checkpoint = open_for_export(checkpoint)
    check_output_file(output, overwrite=overwrite)
    config = checkpoint.config.model
    architecture = architecture_for_export(config, checkpoint.config.source)
    if architecture in _WINDOW_LEFT_OUT and (config.sliding_window or config.max_position) < config.max_position:
        logger.warning(
            "llama.cpp computes %s models without their sliding window: each token attends to all before it, also in "
            "texts of more than %d tokens.",
            *(architecture, config.sliding_window),
        )
    with atomic_file(output) as temporary:
        if type in LLAMA_CPP_TYPES:
            with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
                unquantized = Path(folder) / "unquantized.gguf"
                _write(checkpoint, architecture, unquantized, model_name=output.stem, type=UNQUANTIZED[config.dtype])
                quantize_by_llama_cpp(unquantized, temporary, type)
        else:
            _write(checkpoint, architecture, temporary, model_name=output.stem, type=type)
    logger.info("%s -> %s (GGUF %s, %s)", checkpoint.path, output, architecture, type)
    return output


def _write(checkpoint: Checkpoint, architecture: str, file: Path, *, model_name: str, type: str) -> None:
    """Write a file of one of the types that the `gguf` package quantises."""
    gguf = require("gguf", "writing a GGUF file")
    config = checkpoint.config.model
    checkpoint.check_fits(parameter_shapes(config))
    keys, tensors = _model_keys(architecture, config)
    if not config.is_decoder_only:
        codec = checkpoint.codec()
        keys[t5.START] = codec.vocab.id(codec.start_tokens[0])
    backwards = [one.reversed for one in rules(architecture, config, layout(architecture, config))]
    sizes = {**shapes(backwards, checkpoint), **{name: tuple(tensor.shape) for name, tensor in tensors.items()}}
    kinds = _types(sizes, type)
    general = {**_general(checkpoint, model_name), "file_type": int(gguf.LlamaFileType[FILE_TYPES[type]])}
    writer = gguf.GGUFWriter(file, architecture)
    _add_keys(writer, {f"general.{key}": value for key, value in general.items()})
    _add_keys(writer, {f"{architecture}.{key}": value for key, value in keys.items()})
    _add_keys(writer, {f"tokenizer.{key}": value for key, value in _tokenizer(checkpoint).items()})
    for name, shape in sizes.items():
        kind = gguf.GGMLQuantizationType[kinds[name].upper()]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size_in_bytes(shape, kinds[name]), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.kv_data.clear()  # the vocabulary, before there are large tensors
    return_freed_memory()
    stream = apply(backwards, checkpoint, None, what=str(checkpoint.path))
    for name, tensor in chain(stream, tensors.items()):
        writer.write_tensor_data(QuantizedRows(name, tensor, kinds[name]))
        del tensor  # before the next one is read
    writer.close()


def _tokenizer(checkpoint: Checkpoint) -> Values:
    return tokenizer_keys(checkpoint.codec(), checkpoint.path)


def write_modelfile(checkpoint: Checkpoint | str | Path, gguf_file: Path, output: Path) -> None:
    """Write the Modelfile of a language model, for a GGUF file in the same directory; Ollama runs no other models."""
    codec = open_for_export(checkpoint).codec()
    if codec.task == "lm":
        write_text(output, modelfile(codec, gguf_file.name))


def export_obstacles(architecture: str, config: ModelConfig, source: str = "") -> list[str]:
    """Why a model cannot be written as a file of an architecture; empty = it can.

    A model that was not read from a file of the architecture must be one that a family of transformers with this
    architecture expresses too: in its models, llama.cpp computes the settings that only tensors show.
    """
    found = obstacles(config, expressible(architecture))
    if architecture in _WINDOW_LEFT_OUT and config.sliding_window and not _came_from(source, architecture):
        found.append(f"sliding_window is {config.sliding_window}, which llama.cpp leaves out")
    if found or source.startswith(f"GGUF {architecture},"):
        return found
    families = (family for family in FAMILIES if family.model_type in MODEL_TYPES[architecture])
    return min((obstacles(config, family.expressible) for family in families), key=len, default=["it is only read"])


def architecture_for_export(config: ModelConfig, source: str = "") -> str:
    """The architecture that the model came from, if it expresses `config`; otherwise the first that does.

    Args:
        config: The architecture of the model.
        source: What the checkpoint was converted from.

    Raises:
        UnsupportedError: None expresses it; the message lists the obstacles of each.
    """
    reasons = []
    for architecture in sorted(ARCHITECTURES, key=lambda name: not _came_from(source, name)):
        found = export_obstacles(architecture, config, source)
        if not found:
            return architecture
        reasons.append(f"{architecture}: {', '.join(found)}")
    raise UnsupportedError("No GGUF architecture expresses this model (" + "; ".join(reasons) + ").")


def _came_from(source: str, architecture: str) -> bool:
    origins = [f"GGUF {architecture},", *(f"Hugging Face {name}," for name in MODEL_TYPES[architecture])]
    return source.startswith(tuple(origins))


def expressible(architecture: str) -> Mapping[str, Check]:
    """The settings of `ModelConfig` that files of an architecture can express (see `export_guard`)."""
    shown = shown_by_tensors((), settings(ModelConfig()))
    found = anything("dtype", "vocab_size", *shown)
    for row in ARCHITECTURES[architecture]:
        found |= row.checks
    return {**found, **LOADED.get(architecture, {})}


def _model_keys(architecture: str, config: ModelConfig) -> tuple[Values, dict[str, torch.Tensor]]:
    """Metadata of the architecture without its prefix, and tensors that hold settings (`rope_freqs.weight`).

    Numbers that are 0 are left out: they are what llama.cpp takes where there is no key.
    """
    written = {key: value for row in ARCHITECTURES[architecture] for key, value in row.write(config).items()}
    tensors = {key: value for key, value in written.items() if isinstance(value, torch.Tensor)}
    keys = {key: value for key, value in written.items() if key not in tensors and value is not None}
    keys = {key: value for key, value in keys.items() if isinstance(value, bool) or value != 0}
    return {"attention.value_length": config.size_per_head, "vocab_size": config.vocab_size, **keys}, tensors


def _types(sizes: Mapping[str, tuple[int, ...]], file_type: str) -> dict[str, str]:
    """The number type of each tensor."""
    output = "output.weight" if "output.weight" in sizes else "token_embd.weight"
    return {name: tensor_type(name, shape, file_type, is_output=name == output) for name, shape in sizes.items()}


def _general(checkpoint: Checkpoint, name: str) -> Values:
    source = checkpoint.config.source
    gguf = require("gguf", "writing a GGUF file")
    return {
        "type": "model",
        "name": name,
        "description": f"Written by onmt_llm {__version__}{f' from {source}' if source else ''}",
        "quantization_version": gguf.GGML_QUANT_VERSION,
    }


def _add_keys(writer: Any, metadata: Mapping[str, Any]) -> None:
    """Add metadata; the type of a value decides the type in the file: numbers are uint32 or float32."""
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        if isinstance(value, Iterable) and not isinstance(value, str):
            writer.add_array(key, value if isinstance(value, bytes) else list(value))
        else:
            adders[type(value)](key, value)
