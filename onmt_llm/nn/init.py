"""Weight initialisation of a new model."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from onmt_llm.nn.layers.attention import Attention
from onmt_llm.nn.layers.experts import SelectionBias
from onmt_llm.nn.layers.position_wise import HeadLayerNorm, TiedHead

_RESIDUAL_OUTPUTS = ("o_proj", "down_proj")
_FACTORS = {"q_proj": 0.2, "k_proj": 0.2, "lm_head": 0.4, "relative_bias": 0.0}
"""By name of the layer; 1 for others. Measured, as the next one: docs/benchmarks/learning.md."""
_ENCODER_DECODER_EMBEDDINGS = 0.4

Draw = Callable[[Tensor], object]
"""Fills a tensor with independent values from torch's global generator, one after the other."""


def in_place(parameter: Tensor, draw: Draw) -> None:
    """Draw the values of a parameter."""
    draw(parameter)


@torch.no_grad()
def init_weights(
    model: nn.Module,
    *,
    param_init: float = 0.0,
    glorot: bool = True,
    has_encoder: bool | None = None,
    give: Callable[[Tensor, Draw], None] = in_place,
) -> None:
    """Draw the weights of a new model from torch's global generator.

    | parameter                         | glorot         | else, param_init p > 0 | else: normal, standard deviation  |
    |-----------------------------------|----------------|------------------------|-----------------------------------|
    | q_proj, k_proj                    | Xavier uniform | uniform(-p, p)         | 0.2 / sqrt(inputs)                |
    | o_proj, down_proj                 | Xavier uniform | uniform(-p, p)         | 1 / sqrt(inputs * 2 * layers)     |
    | other linears                     | Xavier uniform | uniform(-p, p)         | 1 / sqrt(inputs)                  |
    | lm_head                           | Xavier uniform | uniform(-p, p)         | 0.4 / sqrt(inputs)                |
    | embeddings: of an encoder-decoder | Xavier uniform | uniform(-p, p)         | 0.4 / sqrt(width)                 |
    | embeddings: of a decoder alone    | Xavier uniform | uniform(-p, p)         | 1 / sqrt(width)                   |
    | T5's biases of distances          | Xavier uniform | uniform(-p, p)         | 0                                 |
    | biases of linears                 | 0              | uniform(-p, p)         | 0                                 |
    | attention sinks, selection biases | 0              | 0                      | 0                                 |
    | norms: weight, bias               | 1, 0           | 1, 0                   | 1, 0                              |

    By default the output of a layer has the variance of its input, whatever the width (LeCun et al. 1998). A fixed 0.02
    (GPT-2) is that at a width of 2,500 and far less in small models, which then learn nothing in their first hundreds
    of updates. Queries and keys are smaller, so attention starts uniform instead of with random preferences that must
    be unlearned; so is the output layer, whose predictions start close to uniform (logits with a standard deviation of
    0.4). `layers` is the number of blocks of the stack: the residual stream does not grow with depth.

    `glorot` (OpenNMT-py's param_init_glorot) wins over `param_init` for matrices; biases follow `param_init` then too.

    Args:
        model: A Transformer, before anything wraps its layers.
        param_init: Half-width of the uniform distribution; 0 = not used.
        glorot: Xavier (Glorot & Bengio 2010) for all matrices.
        has_encoder: Whether this is (a part of) an encoder-decoder; None = by the model's `encoder`.
        give: How a parameter is given its values; another way for weights that are sharded among processes.
    """
    if has_encoder is None:
        has_encoder = getattr(model, "encoder", None) is not None
    embeddings = _ENCODER_DECODER_EMBEDDINGS if has_encoder else 1.0
    depth = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            layers = next((n for prefix, n in depth.items() if name.startswith(prefix + ".")), 1)
            factor = embeddings if isinstance(module, nn.Embedding) else 1.0
            outputs, inputs = module.weight.shape
            if glorot:
                half_width = math.sqrt(3) * math.sqrt(2 / (inputs + outputs))  # rounded as by torch's xavier_uniform_
                draw: Draw = partial(nn.init.uniform_, a=-half_width, b=half_width)
            elif param_init:
                draw = partial(nn.init.uniform_, a=-param_init, b=param_init)
            else:
                draw = partial(nn.init.normal_, std=_std(name, inputs, layers, factor))
            give(module.weight, draw)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm | HeadLayerNorm):
            module.reset_parameters()
        elif isinstance(module, Attention) and module.sinks is not None:
            module.sinks.zero_()
        elif isinstance(module, SelectionBias):
            module.bias.zero_()
        if isinstance(module, nn.Linear | TiedHead) and module.bias is not None:
            if param_init:
                give(module.bias, partial(nn.init.uniform_, a=-param_init, b=param_init))
            else:
                module.bias.zero_()


def _std(name: str, inputs: int, layers: int, otherwise: float) -> float:
    """Standard deviation of a weight; `otherwise` is the factor of layers that the table does not name."""
    if name.endswith(_RESIDUAL_OUTPUTS):
        inputs *= 2 * layers
    return _FACTORS.get(name.rpartition(".")[2], otherwise) / math.sqrt(inputs)
