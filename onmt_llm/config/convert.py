"""Options of the commands that turn one artefact into another: convert, LoRA, checkpoint, release."""

from __future__ import annotations

from typing import Literal

from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.model import Dtype
from onmt_llm.config.section import Section

Quantization = Literal[
    "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32"
]


class ConversionOptions(Section):
    """What is converted, and into what."""

    model_dir: str | None = None
    """Folder (or file) with the foreign weights; with `to`, one of our checkpoints."""
    output: str | None = None
    """Checkpoint directory to write."""
    source: Literal["auto", "hf", "llama_meta", "falcon", "gguf", "opennmt"] = "auto"
    """What the weights are (`from` is understood too); `auto` looks at the files."""
    to: Literal["hf", "opennmt"] | None = None
    """The other way: write one of our checkpoints as a Hugging Face folder, or as a `.pt` file for OpenNMT-py 3.5."""
    format: Literal["pytorch", "safetensors"] | None = None
    """`to: opennmt`: weights in the `.pt` file (the default), or in safetensors files beside it."""
    tokenizer_model: str | None = None
    """SentencePiece model or tokenizer.json, where it is not beside the weights."""
    vocab_file: str | None = None
    """Vocabulary, where neither the weights nor the tokeniser bring it."""
    dtype: Dtype | None = None
    """Type of the written weights; null = as in the source."""
    shard_size: str = "5GB"
    """Largest file of weights; a model above it is written in several."""
    force: bool = False
    """Replace an output that exists."""


class ConvertConfig(Section):
    """Convert LLaMA, Falcon, GGUF and OpenNMT-py weights to a checkpoint, and back to Hugging Face or OpenNMT-py."""

    conversion: ConversionOptions = ConversionOptions()
    integrity: IntegrityConfig = IntegrityConfig()


class LoraToolOptions(Section):
    """Which adapter goes into which base, or into which format."""

    action: Literal["merge", "concat", "import", "export"] = "merge"
    """`merge`: add the adapter to the base's weights, or mix twins of blocks (`expand_type: concat`) with their blocks,
    which is an approximation. `concat`: base and adapter side by side in one checkpoint.
    `import`: make a checkpoint of an adapter of peft (a folder with `adapter_config.json`). `export`: the other way."""
    base_model: str | None = None
    """Checkpoint that the adapter was trained on. `export`: what peft shall load as the base, a name or a folder."""
    lora_weights: str | None = None
    """Checkpoint of the adapter, or of the twins; `import`: the folder of peft's."""
    output: str | None = None
    """Checkpoint directory to write; `export`: folder for peft."""
    force: bool = False
    """Replace an output that exists."""


class LoraToolConfig(Section):
    """Merge a LoRA adapter, or expanded blocks, into the base they were trained on; adapters of peft in and out."""

    adapters: LoraToolOptions = LoraToolOptions()
    integrity: IntegrityConfig = IntegrityConfig()


class CheckpointOptions(Section):
    """Which checkpoint, and what of it."""

    model: str | None = None
    """Checkpoint directory; `verify`, `seal`: an adapter or a CTranslate2 release too."""
    out_file: str | None = None
    """`extract_vocabulary`, `extract_embeddings`: text file to write, a token a line."""
    side: Literal["src", "tgt"] = "tgt"
    """`extract_vocabulary`, `extract_embeddings`: which side's."""
    models: list[str] = []
    """`average`: checkpoints of one model, whose mean is taken."""
    output: str | None = None
    """`average`: checkpoint directory to write."""
    fp32: bool = False
    """`average`: store the mean in float32, whatever the type of the models is."""
    force: bool = False
    """`average`: replace an output that exists."""


class CheckpointToolConfig(Section):
    """Look into a checkpoint (`info`, `verify`, `extract_vocabulary`, `extract_embeddings`), `seal` or `average` it."""

    checkpoint: CheckpointOptions = CheckpointOptions()
    integrity: IntegrityConfig = IntegrityConfig()


class ReleaseOptions(Section):
    """What is released, in which form, and how strictly it is checked."""

    model: str | None = None
    """Checkpoint directory; an adapter must be merged first."""
    output: str | None = None
    """Folder (or, for `pytorch`, file) to write."""
    format: Literal["ctranslate2", "safetensors", "pytorch"] = "ctranslate2"
    """Form of the release."""
    quantization: Quantization | None = None
    """CTranslate2's number format; null = float32."""
    verify: Literal["strict", "warn", "off"] = "strict"
    """Compare the release with the model on real text; `strict` publishes nothing beyond the bound."""
    verify_text: str | None = None
    """Text file to compare on; null = paragraphs that come with the package."""
    force: bool = False
    """Replace an output that exists."""


class ReleaseConfig(Section):
    """Release a trained model for serving, verified against it."""

    release: ReleaseOptions = ReleaseOptions()
    integrity: IntegrityConfig = IntegrityConfig()
