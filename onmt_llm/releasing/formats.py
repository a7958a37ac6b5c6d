"""`release`: write a checkpoint in the form in which it is served, and compare the result with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from onmt_llm.checkpoint.files.manifest import damage, write_manifest
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.registry import Registry
from onmt_llm.text.codec import Codec

Verify = Literal["strict", "warn", "off"]
ReleaseReport = dict[str, Any]


class Writer(Protocol):
    """Writes one format. What it cannot do (also: replace an output without `force`) it refuses before it works."""

    def __call__(
        self,
        checkpoint: Checkpoint,
        output: Path,
        *,
        quantization: str | None,
        verify: Verify,
        text: str | None,
        force: bool,
    ) -> ReleaseReport: ...


FORMATS: Registry[Writer] = Registry("release format")


def release(
    model: str | Path,
    output: str | Path,
    *,
    format: str = "ctranslate2",
    quantization: str | None = None,
    verify: Verify = "strict",
    text: str | None = None,
    force: bool = False,
) -> ReleaseReport:
    """Release a checkpoint for serving.

    Args:
        model: Checkpoint with all of the model's weights.
        output: Directory to write (`pytorch`: a file). It appears complete, or not at all.
        format: "ctranslate2", "safetensors" or "pytorch".
        quantization: Number format of `ctranslate2`: "int8", "int8_float16", "float16" ...; None = float32.
        verify: "strict" publishes nothing whose comparison with the model is beyond the bound, "warn" says so, "off"
            does not compare.
        text: What the two are compared on; None = paragraphs that come with the package.
        force: Replace an output that exists.

    Returns:
        The report, as in `release_report.json`.

    Raises:
        CheckpointError: The model is an adapter, or damaged; the output exists; or the release differs too much from
            the model.
        UnsupportedError: The format cannot express the architecture.
        ConfigError: A format, quantisation or value of `verify` that there is not.
    """
    write = FORMATS.get(format)
    if verify not in ("strict", "warn", "off"):
        raise ConfigError(f"verify must be strict, warn or off, but is '{verify}'.")
    checkpoint = Checkpoint.open(model)
    _refuse_adapter(checkpoint)
    return write(checkpoint, Path(output), quantization=quantization, verify=verify, text=text, force=force)


def seal_release(directory: Path) -> list[str]:
    """Record a CTranslate2 release as it is now: after a change of one's own, or when an older program wrote it.

    Returns:
        What was not as the manifest said, one phrase each.

    Raises:
        CheckpointError: Its configuration, vocabulary or tokeniser cannot be used.
    """
    changed = damage(directory)
    Codec.open(directory)
    write_manifest(directory)
    return changed


def no_quantization(format: str, quantization: str | None) -> None:
    """For formats that keep the checkpoint's own numbers."""
    if quantization is not None:
        raise ConfigError(
            f"quantization must be left out for the format {format}, which keeps the weights as they are, "
            f"but is {quantization}.",
            hint="quantization belongs to --format ctranslate2",
        )


def _refuse_adapter(checkpoint: Checkpoint) -> None:
    if not checkpoint.has_adapter:
        return
    addition = checkpoint.config.addition
    base = addition.base if addition is not None and checkpoint.is_adapter else checkpoint.path
    merged = checkpoint.path.with_name(checkpoint.path.name + ".merged")
    raise CheckpointError(
        f"A release must hold the whole model in plain weights, but {checkpoint.path} is an unmerged "
        f"{checkpoint.config.noun}.",
        hint=(
            f"merge it first: onmt_llm_lora --action merge --base_model {base} "
            f"--lora_weights {checkpoint.path} --output {merged}"
        ),
    )
