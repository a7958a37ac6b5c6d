"""Options of `release_model`."""

from __future__ import annotations

from typing import Literal

from onmt_llm.config.card import CardOptions
from onmt_llm.config.convert import GgufType
from onmt_llm.config.data import DataConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.section import Names, Section

Quantization = Literal[
    "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32"
]

Quality = Literal["plain", "rotated", "calibrated"]


class ReleaseOptions(Section):
    """Model, format and verification of the release."""

    model: str | None = None
    """Checkpoint directory; merge adapters first."""
    output: str | None = None
    """Folder (or, for `pytorch`, file) to write."""
    format: Literal["ctranslate2", "gguf", "safetensors", "pytorch"] = "ctranslate2"
    """Format of the release; `gguf` is for llama.cpp and Ollama."""
    quantization: Quantization | GgufType | None = None
    """Number type of the matrices. `ctranslate2`: `int8` to `float32`, null = float32. `gguf`: `f32` to `q6_k`, null =
    f16; the types with `k` need the package `cyllama`."""
    quality: Quality | None = None
    """How int8 weights are rounded. `plain`: each by itself; `rotated`: after the channels of the residual stream were
    mixed, so that none is much larger than the others, and those inside gated feed-forward layers were scaled by a text
    in the package: less is lost, at the same speed; `calibrated`: in addition so that the outputs change least on
    `calibration_text`. null = `rotated`, or `plain` for a model that cannot be rotated."""
    calibration_text: str | None = None
    """Text file for `quality: calibrated`, with text of the kind that the model will read; up to 8,192 tokens are
    used. null = the training corpora in `data`: give the YAML file of the run with `-config`."""
    compare_plain: bool = False
    """Measure the quality `plain` too, and report its figures beside those of the release. Perplexities need a
    `verify_text` of at least 6,000 tokens."""
    keep_float: Names[str] = []
    """Layers that are not quantised, by name as in `lora_layers`: with `down_proj` int8 loses least, at a lower
    speed."""
    verify: Literal["strict", "warn", "off"] = "strict"
    """Compare the release with the model on real text. `strict`: publish nothing if they differ by more than the bound;
    `warn`: only warn."""
    verify_text: str | None = None
    """Text file for the comparison; null = paragraphs included in the package."""
    force: bool = False
    """Replace an existing output."""


class ReleaseConfig(Section):
    """Release a trained model for serving, verified against the original."""

    release: ReleaseOptions = ReleaseOptions()
    corpora: DataConfig = DataConfig()
    card: CardOptions = CardOptions()
    integrity: IntegrityConfig = IntegrityConfig()
