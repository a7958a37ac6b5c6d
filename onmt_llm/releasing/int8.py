"""How an int8 release keeps its accuracy: what it is written from, its numbers, and the layers that stay in float."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.convert import Quality
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn import wrap
from onmt_llm.nn.transformer import Transformer
from onmt_llm.releasing.ct2_spec import SpecVariable, spec_variables
from onmt_llm.releasing.number_format import NumberFormat
from onmt_llm.releasing.rotation import rotated, rotation_obstacle

LARGEST = 127


def prepared(checkpoint: Checkpoint, numbers: NumberFormat) -> tuple[Quality, Checkpoint]:
    """The quality of a release, and the model that it is written from.

    Raises:
        UnsupportedError: The quality was asked for, and this model cannot have it.
    """
    if not numbers.is_int8 or numbers.quality == "plain":
        return "plain", checkpoint
    obstacle = rotation_obstacle(checkpoint.config.model)
    if obstacle is None:
        return "rotated", rotated(checkpoint)
    if numbers.quality is not None:
        raise UnsupportedError(
            f"quality: {numbers.quality} must go with a model that can be rotated, but {checkpoint.path} cannot be: "
            f"{obstacle}.",
            hint="use --quality plain",
        )
    logger.info("The model is quantised as it is; it cannot be rotated: %s.", obstacle)
    return "plain", checkpoint


def float_variables(config: ModelConfig, names: Collection[str]) -> list[str]:
    """Targets of the matrices that stay in float, by the names of their layers.

    Raises:
        ConfigError: A name matches no layer, or only a part of layers that CTranslate2 computes as one.
    """
    with torch.device("meta"):
        kept = wrap.match(Transformer(config), sorted(names))
    targets = []
    for variable in spec_variables(config):
        layers = _layers(variable) if variable.kind == "matrix" else []
        chosen = [layer for layer in layers if any(layer == path or layer.startswith(f"{path}.") for path in kept)]
        if chosen and len(chosen) < len(layers):
            raise ConfigError(
                f"keep_float must name all or none of {', '.join(layers)}, which CTranslate2 computes as one, "
                f"but names {', '.join(chosen)}."
            )
        targets += [variable.target] if chosen else []
    return targets


def _layers(variable: SpecVariable) -> list[str]:
    """Paths of the layers that a matrix belongs to; a tied output layer is one too."""
    if variable.target == "decoder/projection/weight":
        return ["lm_head"]
    return [source.removesuffix(".weight") for source in variable.sources]


def int8_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in int8, with a scale per row, and the scales (values times scale = int8).

    Without VNNI, processors add the products of two neighbouring weights with two inputs (0 to 255) in 16 bits, which
    must not overflow (decision 026). So in each row the largest sum of two neighbours of one sign becomes 127; rounding
    makes it at most 128, and 255 * 128 < 2^15.

    Args:
        matrix: float32, shape (rows, columns); overwritten.
    """
    largest = np.maximum(_largest_pairs(matrix), _largest_pairs(-matrix))
    tiny = LARGEST / np.finfo(np.float32).max  # of smaller rows the scale would be infinite
    scales = (LARGEST / np.where(largest > 0, np.maximum(largest, tiny), LARGEST)).astype(np.float32)
    matrix *= scales[:, None]
    return np.rint(matrix, out=matrix).astype(np.int8), scales


def _largest_pairs(matrix: np.ndarray) -> np.ndarray:
    """For each row, the largest sum of two neighbours (columns 2i and 2i + 1), of which negative ones count as 0."""
    positive = np.maximum(matrix, 0)
    even, odd = positive[:, ::2], positive[:, 1::2]
    even[:, : odd.shape[1]] += odd
    return even.max(axis=1)
