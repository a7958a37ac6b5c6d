"""The divergence loss of expanded blocks: it keeps the output of a trained copy close to that of its frozen block.

    mean over tokens and pairs of |twin - base|^2 / |base|^2

Control LLM (Wei et al. 2025) adds such a term to the likelihood, with the distance of the hidden states as they are.
Here it is relative to their size, so that one weight suits models of any width and depth.

Shapes: B rows, T positions, D width, M = B T.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def divergence_loss(outputs: Sequence[tuple[Tensor, Tensor]], is_real_M: Tensor) -> Tensor:
    """The divergence loss (float32 scalar).

    Args:
        outputs: Outputs (B, T, D) of block and copy, for each pair.
        is_real_M: False at padding, which does not count.
    """
    total = torch.zeros((), device=is_real_M.device)
    for base_BTD, twin_BTD in outputs:
        base_MD = base_BTD.detach().flatten(0, 1).float()
        distance_M = (twin_BTD.flatten(0, 1).float() - base_MD).square().sum(1)
        relative_M = distance_M / base_MD.square().sum(1).clamp(min=1e-12)
        total = total + relative_M.masked_fill(~is_real_M, 0.0).sum()
    return total / (is_real_M.sum().clamp(min=1) * max(len(outputs), 1))
