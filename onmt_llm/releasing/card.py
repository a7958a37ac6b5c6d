"""The model card of a release."""

from __future__ import annotations

from pathlib import Path

from onmt_llm.atomic import write_text
from onmt_llm.checkpoint.card import CardFormat, card_files
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.card import CardOptions
from onmt_llm.config.checkpoint import CARD_FILE
from onmt_llm.releasing.verify import ReleaseReport

_USAGE = """
import onmt_llm

engine = onmt_llm.open_engine("{folder}")
print(engine.{method}("Hello!", max_length=64))
"""
_USAGE_OF_GGUF = """
ollama create {folder} -f Modelfile && ollama run {folder}
llama-cli -m {folder}.gguf
"""
_LIBRARIES = {"ctranslate2": "ctranslate2", "gguf": "llama.cpp"}
"""Libraries that load a format besides onmt_llm."""


def write_card(checkpoint: Checkpoint, release: Path, report: ReleaseReport, options: CardOptions) -> None:
    """Write the card of a finished release that is a directory.

    Args:
        checkpoint: The model that was released.
        release: The directory.
        report: The report of the release.
        options: What no file of the model says.
    """
    form, number = report["format"], report.get("quantization")
    usage = "" if checkpoint.config.tokenizer.kind == "none" else _USAGE
    method = "ask" if checkpoint.config.model.is_decoder_only else "translate"
    card = CardFormat(
        f"in the format {form}" + (f", {number}" if number else ""),
        _LIBRARIES.get(form, "onmt_llm"),
        _USAGE_OF_GGUF if form == "gguf" else usage.replace("{method}", method),
        relation="quantized" if str(number).startswith(("int", "q")) else "",
        language="shell" if form == "gguf" else "python",
        report=report,
    )
    write_text(release / CARD_FILE, card_files(checkpoint, release, card, options)[CARD_FILE])
