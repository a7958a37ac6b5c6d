"""How an int8 release keeps its accuracy: what it is written from, its numbers, and the layers that stay in float."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.release import Quality
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.nn import wrap
from onmt_llm.nn.transformer import Transformer
from onmt_llm.releasing.ct2_spec import spec_variables
from onmt_llm.releasing.number_format import NumberFormat
from onmt_llm.releasing.rotation import rotated, rotation_obstacle

LARGEST = 127
PAIR_LIMIT = 128
"""Of the sum of two neighbouring weights of one sign: 255 * 128 < 2^15."""


def prepared(checkpoint: Checkpoint, numbers: NumberFormat) -> tuple[Quality, Checkpoint]:
    """The quality of a release, and the model that it is written from, which is rotated if it can be.

    Raises:
        UnsupportedError: The quality was asked for, and this model cannot have it.
    """
    if not numbers.is_int8 or numbers.quality == "plain":
        return "plain", checkpoint
    obstacle = rotation_obstacle(checkpoint.config.model)
    if obstacle is None:
        return numbers.quality or "rotated", rotated(checkpoint)
    if numbers.quality == "rotated":
        raise UnsupportedError(
            f"quality: rotated needs a model that can be rotated, but {checkpoint.path} cannot be: {obstacle}.",
            hint="without this option the model is quantised as it is",
        )
    logger.info("The model is quantised without rotating it; it cannot be rotated: %s.", obstacle)
    return numbers.quality or "plain", checkpoint


def float_variables(config: ModelConfig, names: Collection[str]) -> list[str]:
    """Targets of the matrices that stay in float, by the names of their layers.

    Raises:
        ConfigError: A name matches no layer, or only a part of layers that CTranslate2 computes as one.
    """
    with torch.device("meta"):
        kept = wrap.match(Transformer(config), sorted(names))
    targets = []
    for variable in spec_variables(config):
        layers = variable.layers if variable.kind == "matrix" else []
        chosen = [layer for layer in layers if any(layer == path or layer.startswith(f"{path}.") for path in kept)]
        if chosen and len(chosen) < len(layers):
            raise ConfigError(
                f"keep_float must name all or none of {', '.join(layers)}, which CTranslate2 computes as one, "
                f"but names {', '.join(chosen)}."
            )
        targets += [variable.target] if chosen else []
    return targets


def int8_rows(matrix_RC: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in int8, and the scale of each (values times scale = int8).

    Args:
        matrix_RC: float32; overwritten.
    """
    scales_R = int8_scales(matrix_RC)
    return matrix_RC.mul_(scales_R[:, None]).round_().to(torch.int8), scales_R


def int8_scales(matrix_RC: Tensor) -> Tensor:
    """A scale for each row, with which no processor overflows (decision 026).

    Without VNNI, processors add the products of two neighbouring weights with two inputs (0 to 255) in 16 bits. So the
    largest sum of two neighbours of one sign becomes 127; rounding makes it at most `PAIR_LIMIT`.
    """
    largest_R = torch.maximum(_largest_pairs(matrix_RC), _largest_pairs(-matrix_RC))
    tiny = 2 * LARGEST / torch.finfo(torch.float32).max  # of smaller rows the scale would be infinite
    return LARGEST / torch.where(largest_R > 0, largest_R.clamp(min=tiny), LARGEST)


def _largest_pairs(matrix_RC: Tensor) -> Tensor:
    """For each row, the largest sum of two neighbours (columns 2i and 2i + 1), of which negative ones count as 0."""
    positive_RC = matrix_RC.clamp(min=0)
    even_RP, odd_RP = positive_RC[:, ::2], positive_RC[:, 1::2]
    even_RP[:, : odd_RP.shape[1]] += odd_RP
    return even_RP.amax(dim=1)
