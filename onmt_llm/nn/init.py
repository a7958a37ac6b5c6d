"""All weight initialisation of a new model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onmt_llm.nn.embeddings import TiedHead

_RESIDUAL_OUTPUTS = ("o_proj", "down_proj")
_SCORES = ("q_proj", "k_proj")
_EVEN = 0.2


@torch.no_grad()
def init_weights(model: nn.Module, *, param_init: float = 0.0, glorot: bool = True) -> None:
    """Draw the weights of a new model from torch's global generator.

    | parameter                         | glorot         | else, param_init p > 0 | else: normal, standard deviation  |
    |-----------------------------------|----------------|------------------------|-----------------------------------|
    | q_proj, k_proj                    | Xavier uniform | uniform(-p, p)         | 0.2 / sqrt(inputs)                |
    | o_proj, down_proj                 | Xavier uniform | uniform(-p, p)         | 1 / sqrt(inputs * 2 * layers)     |
    | other linears, lm_head            | Xavier uniform | uniform(-p, p)         | 1 / sqrt(inputs)                  |
    | embeddings                        | Xavier uniform | uniform(-p, p)         | 1 / sqrt(width)                   |
    | T5's biases of distances          | Xavier uniform | uniform(-p, p)         | 0                                 |
    | biases of linears                 | 0              | uniform(-p, p)         | 0                                 |
    | norms: weight, bias               | 1, 0           | 1, 0                   | 1, 0                              |

    By default every layer passes on what it gets at about the same size, whatever its width (LeCun et al. 1998):
    logits begin at size 1, and so do embeddings multiplied by sqrt(hidden_size), beside the sines of positions. A fixed
    0.02 (GPT-2) is that at a width of 2,500 and far less in small models, which then learn nothing for their first
    hundreds of updates. Queries and keys are small, so that attention begins even and not with chance preferences
    that have to be unlearned. `layers` counts the blocks of the stack: the residual stream does not grow with depth.

    `glorot` (OpenNMT-py's param_init_glorot) wins over `param_init` for matrices; biases follow `param_init` then too.

    Args:
        model: A Transformer, before anything wraps its layers.
        param_init: Half-width of the uniform distribution; 0 = not used.
        glorot: Xavier (Glorot & Bengio 2010) for all matrices.
    """
    depth = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            layers = next((n for prefix, n in depth.items() if name.startswith(prefix + ".")), 1)
            std = _std(name, module.weight.shape[1], layers)
            _init_matrix(module.weight, param_init=param_init, glorot=glorot, std=std)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
        if isinstance(module, nn.Linear | TiedHead) and module.bias is not None:
            module.bias.uniform_(-param_init, param_init) if param_init else module.bias.zero_()


def _std(name: str, inputs: int, layers: int) -> float:
    if name.endswith("relative_bias"):
        return 0.0
    if name.endswith(_RESIDUAL_OUTPUTS):
        inputs *= 2 * layers
    return (_EVEN if name.endswith(_SCORES) else 1.0) / math.sqrt(inputs)


def _init_matrix(weight: Tensor, *, param_init: float, glorot: bool, std: float) -> None:
    if glorot:
        nn.init.xavier_uniform_(weight)
    elif param_init:
        nn.init.uniform_(weight, -param_init, param_init)
    else:
        nn.init.normal_(weight, std=std)
