"""`SOURCES`, the formats that are read, and which of them a model is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onmt_llm.checkpoint.formats.eole.read import find_eole, open_eole
from onmt_llm.checkpoint.formats.foreign import recognised, what_is_there
from onmt_llm.checkpoint.formats.gguf.read import open_gguf
from onmt_llm.checkpoint.formats.gguf.tensors import find_gguf
from onmt_llm.checkpoint.formats.huggingface.read import find_huggingface, open_huggingface
from onmt_llm.checkpoint.formats.imported import ImportedModel, ImportOptions
from onmt_llm.checkpoint.formats.litgpt import find_litgpt, open_litgpt
from onmt_llm.checkpoint.formats.opennmt.read import find_opennmt, open_opennmt
from onmt_llm.checkpoint.formats.params_json.read import find_params_json, open_params_json
from onmt_llm.errors import CheckpointError, UnsupportedError

Opener = Callable[[Path, ImportOptions], ImportedModel]


@dataclass(frozen=True)
class SourceFormat:
    """A format that is read.

    Attributes:
        find: Whether there is a model of the format at a path: anything true.
        open: Open it.
        has_text: Its files hold the vocabulary, so there is no model without a tokeniser.
    """

    find: Callable[[Path], object]
    open: Opener
    has_text: bool = False


SOURCES: dict[str, SourceFormat] = {
    "eole": SourceFormat(find_eole, open_eole),
    "hf": SourceFormat(find_huggingface, open_huggingface),
    "falcon": SourceFormat(find_huggingface, open_huggingface),
    "llama_meta": SourceFormat(find_params_json, open_params_json),
    "litgpt": SourceFormat(find_litgpt, open_litgpt),
    "gguf": SourceFormat(find_gguf, open_gguf, has_text=True),
    "opennmt": SourceFormat(find_opennmt, open_opennmt, has_text=True),
}
"""Readable formats, in the order in which they are looked for."""

_KNOWN = (
    "config.json with weights (hf), params.json with weights (llama_meta), lit_model.pth (litgpt), *.gguf, "
    "an OpenNMT-py .pt, vocab.json with model.00.safetensors (eole)"
)


def detect(path: Path) -> str:
    """The format of the model at `path`, by its files.

    Raises:
        CheckpointError: There is none that is read; names the format if it is another.
    """
    found = next((name for name, one in SOURCES.items() if one.find(path)), None)
    if found is not None:
        return found
    other = recognised(path)
    if other is None and (path / "config.json").is_file():
        return "hf"
    if other is not None:
        raise UnsupportedError(
            f"{path} must be a model in a format that can be converted, but is {other.what}.",
            hint=other.hint.format(path=path),
        )
    raise CheckpointError(f"{path} must hold a model in a known format ({_KNOWN}), but {what_is_there(path)}.")
