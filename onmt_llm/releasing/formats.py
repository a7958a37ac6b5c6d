"""`release`: write a checkpoint in the format in which it is served; the registry of formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from onmt_llm.checkpoint.files.manifest import find_damage, write_manifest
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.registry import Registry
from onmt_llm.text.codec import Codec

Verify = Literal["strict", "warn", "off"]
ReleaseReport = dict[str, Any]


class Writer(Protocol):
    """Writes one format. It refuses what it cannot do (or an existing output without `force`) before writing."""

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
        output: Directory to write (`pytorch`: a file). It gets its name only when it is complete.
        format: "ctranslate2", "safetensors" or "pytorch".
        quantization: Number format of `ctranslate2`: "int8", "int8_float16", "float16" ...; None = float32.
        verify: "strict" fails if a difference from the model exceeds its bound, "warn" only warns, "off" does not
            compare.
        text: Text to compare on; None = text that comes with the package.
        force: Replace an existing output.

    Returns:
        The report, as in `release_report.json`.

    Raises:
        CheckpointError: The model is an adapter or damaged, the output exists, or the release differs too much.
        UnsupportedError: The format cannot express the architecture.
        ConfigError: Unknown format, quantisation or value of `verify`.
    """
    write = FORMATS.get(format)
    if verify not in ("strict", "warn", "off"):
        raise ConfigError(f"verify must be strict, warn or off, but is '{verify}'.")
    checkpoint = Checkpoint.open(model)
    _refuse_adapter(checkpoint)
    return write(checkpoint, Path(output), quantization=quantization, verify=verify, text=text, force=force)


def seal_release(directory: Path) -> list[str]:
    """Write a new manifest for a CTranslate2 release: after a manual change, or if an older version wrote it.

    Returns:
        Differences from the old manifest, one phrase each.

    Raises:
        CheckpointError: Its configuration, vocabulary or tokeniser is unusable.
    """
    changed = find_damage(directory)
    Codec.open(directory)
    write_manifest(directory)
    return changed


def refuse_quantization(format: str, quantization: str | None) -> None:
    """Refuse a quantisation for formats that keep the weights unchanged."""
    if quantization is not None:
        raise ConfigError(
            f"quantization must be left out for the format {format}, which keeps the weights unchanged, "
            f"but is {quantization}.",
            hint="use --format ctranslate2 to quantise",
        )


def _refuse_adapter(checkpoint: Checkpoint) -> None:
    if not checkpoint.has_adapter:
        return
    addition = checkpoint.config.addition
    base = addition.base if addition is not None and checkpoint.is_adapter else checkpoint.path
    merged = checkpoint.path.with_name(checkpoint.path.name + ".merged")
    raise CheckpointError(
        f"A release must hold a whole model in plain weights, but {checkpoint.path} is an unmerged "
        f"{checkpoint.config.noun}.",
        hint=(
            f"merge it first: onmt_llm_lora --action merge --base_model {base} "
            f"--lora_weights {checkpoint.path} --output {merged}"
        ),
    )
