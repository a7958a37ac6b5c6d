"""Plain LoRA around a linear layer or a token embedding.

The adapter is kept in float32 whatever the type of the base (an update of 1e-5 is lost in bf16), and cast to the type
of the activations on use, which costs little since it is small.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.nn.activations.recompute import recompute
from onmt_llm.nn.layers.position_wise import TokenEmbedding
from onmt_llm.nn.quantized import linear_weight


class LoRALinear(nn.Module):
    """A frozen linear layer (plain, Int8Linear or bitsandbytes') with an adapter.

    Args:
        base: The layer; it becomes the frozen module `base`.
        rank: Inner size of the adapter.
        scale: Factor of the adapter's output.
        dropout: Of the adapter's input, while training.

    Attributes:
        disabled: Compute what the layer did before the adapter was trained.
        lora_start_a, lora_start_b: Initial A and B where they were taken out of the base (`init.py`), else None.
        recomputed: Parts of the model that are recomputed in the backward pass (`recompute.py`).
    """

    recomputed: Collection[str] = ()
    lora_start_a: Tensor | None
    lora_start_b: Tensor | None

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.scale, self.dropout, self.disabled = scale, dropout, False
        device: torch.device = base.weight.device  # type: ignore[assignment]
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features, dtype=torch.float32, device=device))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, dtype=torch.float32, device=device))
        self.draw_a(self.lora_a)
        self.register_buffer("lora_start_a", None)
        self.register_buffer("lora_start_b", None)

    def draw_a(self, a: Tensor) -> None:
        """Draw a new A; B is zero at first."""
        nn.init.uniform_(a, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the type of the base's output."""
        y = self.base(x)
        return self._untrained(x, y) if self.disabled else self._adapted(x, y)

    def _adapted(self, x: Tensor, y: Tensor) -> Tensor:
        return self._add_adapter(x, y, self.lora_b * self.scale)

    def _add_adapter(self, x: Tensor, y: Tensor, scaled_b: Tensor) -> Tensor:
        """y + x A' B'."""
        again = "lora" in self.recomputed and torch.is_grad_enabled()
        inputs = x, self.lora_a, y.dtype
        low = recompute(self, self._project_down, *inputs) if again else self._project_down(*inputs)
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), scaled_b.to(y.dtype).t()).view(y.shape)

    def _project_down(self, x: Tensor, a: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., in) -> (..., rank)."""
        return F.linear(F.dropout(x, self.dropout, self.training).to(dtype), a.to(dtype))

    def _untrained(self, x: Tensor, y: Tensor) -> Tensor:
        """Output before any training: the base's, plus the product that was taken out of it for the adapter."""
        if self.lora_start_a is None or self.lora_start_b is None:
            return y
        low = F.linear(x.to(y.dtype), self.lora_start_a.to(y.dtype))
        return y + F.linear(low, (self.lora_start_b * self.scale).to(y.dtype))

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """(out, in) weight of an equivalent plain layer, in the base's type (float32 if it is quantised)."""
        weight = linear_weight(self.base)
        return self._merge(weight.float()).to(weight.dtype)

    def _merge(self, weight: Tensor) -> Tensor:
        return add_product(weight, self.lora_a, self.lora_b, self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.lora_a.shape[0]}, scale={self.scale:g}, dropout={self.dropout}"


class LoRAEmbedding(nn.Module):
    """A frozen token embedding with an adapter: A is (rank, tokens), B is (size, rank).

    With tied embeddings the output layer calls this module's `project`, so it uses the adapted matrix: the two stay
    tied in training, and only the merged embedding has to be saved.

    Args:
        base: The embedding; it becomes the frozen module `base`.
        rank: Inner size of the adapter.
        scale: Factor of the adapter's output.
        dropout: Of the adapter's vectors, while training.

    Attributes:
        disabled: Compute what the embedding did before the adapter was trained.
    """

    def __init__(self, base: TokenEmbedding, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout, self.disabled = scale, dropout, False
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, base.num_embeddings, dtype=torch.float32, device=device))
        self.lora_b = nn.Parameter(torch.zeros(base.embedding_dim, rank, dtype=torch.float32, device=device))
        self.draw_a(self.lora_a)

    def draw_a(self, a: Tensor) -> None:
        """Draw a new A; B is zero at first."""
        nn.init.normal_(a, std=1 / len(a))

    def forward(self, ids_BT: Tensor) -> Tensor:
        y_BTD = self.base(ids_BT)
        return y_BTD if self.disabled else self._adapted(ids_BT, y_BTD)

    def _adapted(self, ids_BT: Tensor, y_BTD: Tensor) -> Tensor:
        return self._add_adapter(ids_BT, y_BTD, self.lora_b * self.scale)

    def _add_adapter(self, ids_BT: Tensor, y_BTD: Tensor, scaled_b: Tensor) -> Tensor:
        low = F.dropout(F.embedding(ids_BT, self.lora_a.t()), self.dropout, self.training)
        return y_BTD + F.linear(low, scaled_b).to(y_BTD.dtype)

    def project(self, x_BTD: Tensor) -> Tensor:
        """Logits of all tokens (B, T, V) with the adapted matrix."""
        return self.base.project(x_BTD) if self.disabled else self._adapted_logits(x_BTD)

    def _adapted_logits(self, x_BTD: Tensor) -> Tensor:
        y_BTV = self.base.project(x_BTD)
        low = F.linear(F.dropout(x_BTD, self.dropout, self.training), (self.lora_b * self.scale).t().to(x_BTD.dtype))
        return y_BTV + F.linear(low, self.lora_a.t().to(x_BTD.dtype))

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """(V, D) weight of an equivalent plain embedding."""
        weight = self.base.weight
        return self._merge(weight.float().t()).t().to(weight.dtype).contiguous()

    def _merge(self, weight: Tensor) -> Tensor:
        return add_product(weight, self.lora_a, self.lora_b, self.scale)

    def extra_repr(self) -> str:
        return f"rank={self.lora_a.shape[0]}, scale={self.scale:g}, dropout={self.dropout}"


LoRALayer = LoRALinear | LoRAEmbedding


def add_product(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A (out, in), in float32."""
    return torch.addmm(weight, b.float(), a.float(), alpha=scale)
