"""Open a folder of eole's: one that `eole train` or `eole convert HF` has written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from onmt_llm.checkpoint.files.safetensors import SafetensorsSet
from onmt_llm.checkpoint.formats.eole.rules import IGNORE, rules
from onmt_llm.checkpoint.formats.eole.settings import FILE, architecture, section, stack_settings
from onmt_llm.checkpoint.formats.eole.text import open_text
from onmt_llm.checkpoint.formats.imported import NUMBERS, ImportedModel, ImportOptions, TypedSource
from onmt_llm.checkpoint.formats.rules import Rule, check_sizes
from onmt_llm.checkpoint.formats.tokenizer_files import read_json
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn.transformer import parameter_shapes

WEIGHTS = "model.*.safetensors"


def find_eole(path: Path) -> bool:
    """Whether there is an eole model at `path`."""
    return all((path / name).is_file() for name in (FILE, "vocab.json", "model.00.safetensors"))


def open_eole(path: Path, options: ImportOptions) -> ImportedModel:
    """Open an eole model.

    Args:
        path: The folder.
        options: See `ImportOptions`; the tokenisers are those in the folder that config.json names.

    Raises:
        CheckpointError: Files are missing or damaged.
        UnsupportedError: The model computes something that ours do not.
    """
    settings = read_json(path / FILE)
    model = section(settings, "model")
    if not model:
        raise CheckpointError(f"{path / FILE} must have the section `model`, but does not.")
    source = SafetensorsSet(path, [file.name for file in path.glob(WEIGHTS)])
    _refuse_weights(path, source)
    config = architecture(model, source, ignore_unknown=options.ignore_unknown)
    check_sizes(config, source, path)
    if any(name.startswith("mtp_heads.") for name in source.names()):
        logger.warning("The heads that predict further tokens (num_mtp_heads) are left out.")
    found = stack_settings(model, "decoder")
    table = rules(config, found)
    return ImportedModel(
        origin=f"eole model, {path.name}",
        model=config,
        source=_WithBiases(source, table, config),
        rules=table,
        ignore=[*IGNORE, *_copies(config)],
        tokenizer=open_text(path, settings, config, options),
        alignment=_alignment(found),
    )


_SOME_LACK = ("linear_keys.bias", "final_linear.bias")


class _WithBiases:
    """The tensors of a file, with zeros for biases that only some layers have: eole's `add_qkvbias` gives the attention
    of a decoder an output bias that the encoder lacks, and keys may have no bias (`add_key_bias`)."""

    def __init__(self, source: TypedSource, table: Sequence[Rule], config: ModelConfig) -> None:
        self._source = source
        ours, here = parameter_shapes(config), set(source.names())
        biases = {one.theirs[0] for one in table if one.ours[0] in ours and one.theirs[0].endswith(_SOME_LACK)}
        self._zeros = {name for name in biases - here if _weight(name) in here}

    def names(self) -> list[str]:
        return [*self._source.names(), *sorted(self._zeros)]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(_weight(name))[:1] if name in self._zeros else self._source.shape(name)

    def tensor(self, name: str) -> torch.Tensor:
        return (
            torch.zeros(self.shape(name), dtype=self.dtype(name)) if name in self._zeros else self._source.tensor(name)
        )

    def dtype(self, name: str) -> torch.dtype:
        return self._source.dtype(_weight(name) if name in self._zeros else name)


def _weight(bias: str) -> str:
    return bias.removesuffix("bias") + "weight"


def _refuse_weights(path: Path, source: TypedSource) -> None:
    """Refuse what is no whole model of plain numbers."""
    names = source.names()
    if any(".lora_" in name for name in names):
        raise UnsupportedError(
            f"{path} must hold a whole model, but holds LoRA weights.", hint="merge them into their model with eole"
        )
    coded = [name for name in names if source.dtype(name) not in NUMBERS]
    if coded:
        raise UnsupportedError(
            f"{path} must hold plain numbers, but {coded[0]} and {len(coded) - 1} more are quantised.",
            hint="convert the full-precision model",
        )
    scaled = [name for name in names if name.endswith(".layer_scalar") and source.tensor(name).ne(1).any()]
    if scaled:
        raise UnsupportedError(f"The layers of {path} must not be scaled, but {scaled[0]} is not 1.")


def _copies(config: ModelConfig) -> list[str]:
    """Tensors of shared matrices, which some files have twice."""
    copies = {"generator.weight": config.tie_embeddings, "tgt_emb.embeddings.weight": config.share_embeddings}
    return [name for name, shared in copies.items() if shared]


def _alignment(found: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of guided alignment, if the model was trained with it."""
    if not found.get("lambda_align"):
        return {}
    return {
        "alignment_layer": found.get("alignment_layer", -2),
        "alignment_heads": found.get("alignment_heads", 0),
        "full_context_alignment": bool(found.get("full_context_alignment", False)),
    }
