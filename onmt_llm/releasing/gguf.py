"""Write GGUF releases of language models for llama.cpp and Ollama, verified against the model.

The file is read back with the reader of `onmt_llm_convert`, dequantised, and compared in float32. What llama.cpp adds
to that in its own number formats is not compared.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onmt_llm.atomic import AtomicDirectory
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.directory import MANIFEST_FILE, manifest_text
from onmt_llm.checkpoint.formats.gguf.write import export_gguf, write_modelfile
from onmt_llm.checkpoint.provenance import copy_provenance
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.checkpoint import CONFIG_FILE, config_text
from onmt_llm.errors import CheckpointError, ConfigError, UnsupportedError
from onmt_llm.generate.ct2.model import REPORT_FILE
from onmt_llm.log import logger
from onmt_llm.releasing.number_format import NumberFormat
from onmt_llm.releasing.verify import Reference, ReleaseReport, Verify, bundled_text, with_verdict

MODELFILE = "Modelfile"

BOUNDS: dict[str, dict[str, float]] = {
    "f32": {"max_abs_dlogit": 1e-3},
    "f16": {"mean_kl": 0.02},
    "bf16": {"mean_kl": 0.02},
    "q8_0": {"mean_kl": 0.02, "perplexity_ratio": 1.02},
    "q5_1": {"mean_kl": 0.25, "perplexity_ratio": 1.3},
    "q5_0": {"mean_kl": 0.25, "perplexity_ratio": 1.3},
    "q4_1": {"mean_kl": 0.5, "perplexity_ratio": 1.5},
    "q4_0": {"mean_kl": 0.5, "perplexity_ratio": 1.5},
    "q6_k": {"mean_kl": 0.05, "perplexity_ratio": 1.05},
    "q5_k_m": {"mean_kl": 0.25, "perplexity_ratio": 1.3},
    "q4_k_m": {"mean_kl": 0.25, "perplexity_ratio": 1.3},
    "q3_k_m": {"mean_kl": 0.5, "perplexity_ratio": 1.5},
    "q2_k": {"mean_kl": 1.5, "perplexity_ratio": 3.0},
}
"""Upper bounds of the figures for each type. On SmolLM2-135M, q8_0 has KL 0.0012 and ratio 1.001, q5_1 0.13 and 1.16,
q6_k 0.005 and 1.004, q2_k 0.39 and 1.32: small models lose much in few bits, and these bounds are there to find
damage."""


def release_gguf(
    checkpoint: Checkpoint, output: Path, *, numbers: NumberFormat, verify: Verify, text: str | None, force: bool
) -> ReleaseReport:
    """Write a directory with the model as a GGUF file of the same name and a Modelfile; see `release`."""
    type = numbers.quantization or "f16"
    if type not in BOUNDS:
        raise ConfigError(
            f"quantization must be one of {', '.join(BOUNDS)} for the format gguf, but is '{type}'.",
            hint="int8 and the like are CTranslate2's: use --format ctranslate2",
        )
    if verify != "off" and not checkpoint.config.model.is_decoder_only:
        raise UnsupportedError(
            f"A GGUF release is only compared with a language model, but {checkpoint.path} has an encoder.",
            hint="add --verify off, or use --format ctranslate2",
        )
    with AtomicDirectory(output, overwrite=force) as release:
        with release.translated_errors():
            file = export_gguf(checkpoint, release.directory / f"{output.resolve().name}.gguf", type=type)
            write_modelfile(checkpoint, file, release.directory / MODELFILE)
            release.add_text(CONFIG_FILE, config_text(checkpoint.config))
            copy_provenance(checkpoint.path, release.directory)
        report: ReleaseReport = {
            "format": "gguf",
            "source": str(checkpoint.path),
            "quantization": type,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in ("gguf", "torch")}},
        }
        if verify == "off":
            report["verdict"] = "not verified"
        else:
            measured = _measure(checkpoint, file, type, text)
            report |= with_verdict(measured, type, strict=verify == "strict", instead="another quantization")
        release.add_text(REPORT_FILE, json.dumps(report, indent=2) + "\n")
        with release.translated_errors():
            release.add_text(MANIFEST_FILE, manifest_text(release.directory))
        return report


def _measure(checkpoint: Checkpoint, file: Path, type: str, text: str | None) -> dict[str, Any]:
    """Figures of the file, read back as a checkpoint.

    Raises:
        CheckpointError: The tokeniser in the file makes other tokens of the text.
    """
    text = bundled_text() if text is None else text
    reference = Reference(checkpoint, text)
    with TemporaryDirectory(dir=file.parent.parent, prefix=".verify-") as scratch:
        read_back = Checkpoint.open(convert(file, Path(scratch) / "model", dtype="fp32"))
        ours, theirs = (one.codec() for one in (checkpoint, read_back))
        if ours.vocab.ids(ours.encode(text)) != theirs.vocab.ids(theirs.encode(text)):
            raise CheckpointError(
                "The tokeniser in the GGUF file must make the model's tokens of a text, but does not."
            )
        comparison = reference.compare_checkpoint(read_back)
    logger.info("Compared on %d tokens; the GGUF file was read back in float32.", comparison.positions)
    return {
        "compute_type": comparison.compute_type,
        "reference_dtype": "fp32",
        "figures": comparison.figures(),
        "bounds": BOUNDS[type],
        "not_compared": ["llama.cpp's own arithmetic: it multiplies quantised matrices with rounded inputs."],
    }
