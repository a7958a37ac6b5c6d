"""DoRA (Liu et al. 2024): the rows of W + scale * B A are rescaled to trained norms, the magnitude.

As in section 4.3 of the paper, no gradient flows through the current norms of the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from onmt_llm.nn.layers.position_wise import TokenEmbedding
from onmt_llm.nn.lora.layers import LoRAEmbedding, LoRALinear
from onmt_llm.nn.quantized import weight_blocks

_TINY = torch.finfo(torch.float32).tiny


class DoRALinear(LoRALinear):
    """`LoRALinear` with a trained norm per output.

    Attributes:
        lora_magnitude: (out,) the trained norms, initially those of the base's rows.
        base_squares: (out,) squared norms of the base's rows.
    """

    base_squares: Tensor

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, scale, dropout)
        squares_O = torch.cat([rows.square().sum(1) for rows in weight_blocks(base)])
        self.register_buffer("base_squares", squares_O, persistent=False)
        self.lora_magnitude = nn.Parameter(squares_O.sqrt())

    def _adapted(self, x: Tensor, y: Tensor) -> Tensor:
        ratio_O = self.lora_magnitude / self._norms()
        without_bias: Tensor = y if self.base.bias is None else y - self.base.bias  # type: ignore[operator]
        # Added to y instead of multiplying it: bf16 has no number between 1 and 1.008.
        y = torch.addcmul(y, without_bias, (ratio_O - 1).to(y.dtype))
        return self._add_adapter(x, y, self.lora_b * self.scale * ratio_O[:, None])

    @torch.no_grad()
    def _norms(self) -> Tensor:
        """Norms of the rows of W + scale * B A. W is read once, for its product with A, and never copied."""
        products_OR = torch.cat([rows @ self.lora_a.t() for rows in weight_blocks(self.base)])
        return _adapted_norms(self.base_squares, products_OR, self.lora_a, self.lora_b, self.scale)

    @torch.no_grad()
    def reset_magnitude(self) -> None:
        """Set the magnitude to the norms of the rows with the current A and B."""
        self.lora_magnitude.copy_(self._norms())

    def _merge(self, weight: Tensor) -> Tensor:
        return rescale_rows(super()._merge(weight), self.lora_magnitude)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dora"


class DoRAEmbedding(LoRAEmbedding):
    """`LoRAEmbedding` with a trained norm per dimension, over all tokens (as peft has it).

    Attributes:
        lora_magnitude: (D,) the trained norms, initially those of the base's columns.
        base_squares: (D,) squared norms of the base's columns.
    """

    base_squares: Tensor

    def __init__(self, base: TokenEmbedding, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(base, rank, scale, dropout)
        squares_D = base.weight.float().square().sum(0)
        self.register_buffer("base_squares", squares_D, persistent=False)
        self.lora_magnitude = nn.Parameter(squares_D.sqrt())

    def _adapted(self, ids_BT: Tensor, y_BTD: Tensor) -> Tensor:
        ratio_D = self._ratio()
        y_BTD = torch.addcmul(y_BTD, y_BTD, (ratio_D - 1).to(y_BTD.dtype))
        return self._add_adapter(ids_BT, y_BTD, self.lora_b * self.scale * ratio_D[:, None])

    def _adapted_logits(self, x_BTD: Tensor) -> Tensor:
        return super()._adapted_logits(torch.addcmul(x_BTD, x_BTD, (self._ratio() - 1).to(x_BTD.dtype)))

    def _ratio(self) -> Tensor:
        """Factor of each dimension: its trained norm over its current one."""
        with torch.no_grad():
            products_DR = (self.lora_a @ self.base.weight.float()).t()
            norms_D = _adapted_norms(self.base_squares, products_DR, self.lora_a, self.lora_b, self.scale)
        return self.lora_magnitude / norms_D

    def _merge(self, weight: Tensor) -> Tensor:
        return rescale_rows(super()._merge(weight), self.lora_magnitude)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dora"


def rescale_rows(weight: Tensor, magnitude: Tensor) -> Tensor:
    """The weight with its rows rescaled to the norms in `magnitude`."""
    return weight * (magnitude.float() / weight.norm(dim=1).clamp(min=_TINY))[:, None]


def _adapted_norms(base_squares_O: Tensor, products_OR: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Norms of the rows of W + scale * B A from those of W, |W|^2 = `base_squares_O`, and W A' = `products_OR`."""
    cross_O = (products_OR * b).sum(1)
    own_O = ((b @ (a @ a.t())) * b).sum(1)
    return (base_squares_O + 2 * scale * cross_O + scale**2 * own_O).clamp(min=_TINY).sqrt()
