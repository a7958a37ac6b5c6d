"""`release`: write a checkpoint in the format in which it is served; the table of formats."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from onmt_llm.checkpoint.directory import find_damage, write_manifest
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.card import NOTHING_TO_ADD, CardOptions
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.registry import nearest
from onmt_llm.releasing.card import write_card
from onmt_llm.releasing.ctranslate2 import release_ctranslate2
from onmt_llm.releasing.gguf import release_gguf
from onmt_llm.releasing.number_format import NumberFormat
from onmt_llm.releasing.plain import release_pytorch, release_safetensors
from onmt_llm.releasing.verify import ReleaseReport, Verify
from onmt_llm.text.codec import Codec


class Writer(Protocol):
    """Writes one format. It refuses what it cannot do (or an existing output without `force`) before writing."""

    def __call__(
        self,
        checkpoint: Checkpoint,
        output: Path,
        *,
        numbers: NumberFormat,
        verify: Verify,
        text: str | None,
        force: bool,
    ) -> ReleaseReport: ...


FORMATS: dict[str, Writer] = {
    "ctranslate2": release_ctranslate2,
    "gguf": release_gguf,
    "pytorch": release_pytorch,
    "safetensors": release_safetensors,
}


def release(
    model: str | Path,
    output: str | Path,
    *,
    format: str = "ctranslate2",
    quantization: str | NumberFormat | None = None,
    verify: Verify = "strict",
    text: str | None = None,
    card: CardOptions = NOTHING_TO_ADD,
    force: bool = False,
) -> ReleaseReport:
    """Release a checkpoint for serving; a release that is a directory gets a model card.

    Args:
        model: Checkpoint with all of the model's weights.
        output: Directory to write (`pytorch`: a file). It gets its name only when it is complete.
        format: "ctranslate2", "gguf", "safetensors" or "pytorch".
        quantization: Number format of `ctranslate2` ("int8", "int8_float16", "float16" ...; None = float32) or `gguf`
            ("q8_0", "q4_0" ...; None = f16), or with more settings a `NumberFormat`.
        verify: "strict" fails if a difference from the model exceeds its bound, "warn" only warns, "off" does not
            compare.
        text: Text to compare on; None = text that comes with the package.
        card: What the model card says besides the facts in the checkpoint.
        force: Replace an existing output.

    Returns:
        The report, as in `release_report.json`.

    Raises:
        CheckpointError: The model is an adapter or damaged, the output exists, or the release differs too much.
        UnsupportedError: The format cannot express the architecture.
        ConfigError: Unknown format, quantisation or value of `verify`.
    """
    if format not in FORMATS:
        guess = nearest(format, FORMATS)
        raise ConfigError(
            f"'{format}' is not a known release format; known are: {', '.join(FORMATS)}.",
            hint=f"did you mean '{guess}'?" if guess else None,
        )
    if verify not in ("strict", "warn", "off"):
        raise ConfigError(f"verify must be strict, warn or off, but is '{verify}'.")
    checkpoint = Checkpoint.open(model)
    if checkpoint.has_adapter:
        raise _unmerged(checkpoint)
    path = Path(output)
    numbers = quantization if isinstance(quantization, NumberFormat) else NumberFormat(quantization)
    numbers.check()
    if numbers.compare_plain and verify == "off":
        raise ConfigError("compare_plain needs verify: strict or warn, but verify is off.")
    report = FORMATS[format](checkpoint, path, numbers=numbers, verify=verify, text=text, force=force)
    if path.is_dir():
        write_card(checkpoint, path, report, card)
    return report


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


def _unmerged(checkpoint: Checkpoint) -> CheckpointError:
    addition = checkpoint.config.addition
    base = addition.base if addition is not None and checkpoint.is_adapter else checkpoint.path
    merged = (
        f"{checkpoint.path.resolve()}.merged" if checkpoint.path.name in ("", "..") else f"{checkpoint.path}.merged"
    )
    return CheckpointError(
        f"A release must hold a whole model in plain weights, but {checkpoint.path} is an unmerged "
        f"{checkpoint.config.noun}.",
        hint=(
            f"merge it first: onmt_llm_lora --action merge --base_model {base} "
            f"--lora_weights {checkpoint.path} --output {merged}"
        ),
    )
