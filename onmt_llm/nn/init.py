"""All weight initialisation of a new model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onmt_llm.nn.embeddings import TiedHead

STD = 0.02
_RESIDUAL_OUTPUTS = ("o_proj", "down_proj")


@torch.no_grad()
def init_weights(model: nn.Module, *, param_init: float = 0.0, glorot: bool = True) -> None:
    """Draw the weights of a new model from torch's global generator.

    | parameter                         | glorot         | else, param_init p > 0 | else                             |
    |-----------------------------------|----------------|------------------------|----------------------------------|
    | o_proj, down_proj                 | Xavier uniform | uniform(-p, p)         | normal(0.02 / sqrt(2 * layers))  |
    | other linears, lm_head            | Xavier uniform | uniform(-p, p)         | normal(0.02)                     |
    | embeddings                        | Xavier uniform | uniform(-p, p)         | normal(0.02)                     |
    | biases of linears                 | 0              | uniform(-p, p)         | 0                                |
    | norms: weight, bias               | 1, 0           | 1, 0                   | 1, 0                             |

    As in OpenNMT, `glorot` (its param_init_glorot) wins over `param_init` for matrices; biases follow `param_init` then
    too. `layers` counts the blocks of the stack, which keeps the residual stream from growing with depth (GPT-2).

    Args:
        model: A Transformer, before anything wraps its layers.
        param_init: Half-width of the uniform distribution; 0 = not used.
        glorot: Xavier (Glorot & Bengio 2010) for all matrices.
    """
    depth = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            layers = next((n for prefix, n in depth.items() if name.startswith(prefix + ".")), 1)
            residual = name.endswith(_RESIDUAL_OUTPUTS)
            std = STD / math.sqrt(2 * layers) if residual else STD
            _init_matrix(module.weight, param_init=param_init, glorot=glorot, std=std)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
        if isinstance(module, nn.Linear | TiedHead) and module.bias is not None:
            module.bias.uniform_(-param_init, param_init) if param_init else module.bias.zero_()


def _init_matrix(weight: Tensor, *, param_init: float, glorot: bool, std: float) -> None:
    if glorot:
        nn.init.xavier_uniform_(weight)
    elif param_init:
        nn.init.uniform_(weight, -param_init, param_init)
    else:
        nn.init.normal_(weight, std=std)
