"""Options of `onmt_llm_convert`."""

from __future__ import annotations

from typing import Literal

from onmt_llm.config.card import CardOptions
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.model import Dtype
from onmt_llm.config.section import Section

GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"
]
"""Number types of the matrices in a GGUF file."""


class ConversionOptions(Section):
    """Source, target and format of the conversion."""

    model_dir: str | None = None
    """Folder (or file) with the foreign weights; with `to`, one of our checkpoints."""
    output: str | None = None
    """Checkpoint directory to write; with `to`, the folder or file of the other format."""
    source: Literal["auto", "hf", "llama_meta", "litgpt", "falcon", "gguf", "opennmt", "eole"] = "auto"
    """Format of the source (also `from`); `auto` detects it from the files."""
    to: Literal["hf", "gguf", "opennmt", "meta", "peft", "ctranslate2", "litgpt"] | None = None
    """Convert in the other direction: write one of our checkpoints as a Hugging Face folder, as a GGUF file for
    llama.cpp and Ollama, as a `.pt` file for OpenNMT-py 3.5, or in Meta's format (`consolidated.00.pth`); or an adapter
    for peft. `ctranslate2` and `litgpt` are refused, with the command that writes them."""
    format: Literal["pytorch", "safetensors"] | None = None
    """`to: opennmt`: store the weights in the `.pt` file (default), or in safetensors files beside it."""
    quantization: GgufType | None = None
    """`to: gguf`: number type of the matrices; null = f16. The types with `k` need the package `cyllama`."""
    tokenizer_model: str | None = None
    """SentencePiece model or tokenizer.json, if not found beside the weights; `none` converts the weights alone, for a
    model that reads no text but can be exported and released."""
    src_tokenizer_model: str | None = None
    """OpenNMT-py: subword model of the source side, if another than that of the target, `tokenizer_model`."""
    vocab_file: str | None = None
    """Vocabulary, if neither the weights nor the tokeniser contain it."""
    ignore_unknown: bool = False
    """Convert a model whose configuration has keys that are not known; they are logged and ignored. Without it they are
    refused, since they may change what the model computes."""
    dtype: Dtype | None = None
    """Type of the written weights; null = as in the source. `to: gguf` has `quantization` instead."""
    shard_size: str = "5GB"
    """Maximum size of a weight file; larger models are written in several files."""
    force: bool = False
    """Replace an existing output."""


class ConvertConfig(Section):
    """Convert LLaMA, Falcon, GGUF and OpenNMT-py weights to checkpoints, and back to Hugging Face, GGUF, OpenNMT-py."""

    conversion: ConversionOptions = ConversionOptions()
    card: CardOptions = CardOptions()
    integrity: IntegrityConfig = IntegrityConfig()
