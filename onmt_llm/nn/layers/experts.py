"""A mixture of experts: feed-forward layers of which each token uses only a few (Shazeer et al. 2017).

Each expert is a `FeedForward` of its own, so whatever addresses layers by name (LoRA, quantisation, block expansion)
addresses experts too. `docs/decisions/` has the reasons, and measurements.

Shapes: M tokens (B * T), D hidden_size, E experts, C experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.config.model import ModelConfig
from onmt_llm.nn.layers.position_wise import FeedForward
from onmt_llm.nn.uncompiled import uncompiled


class Router(nn.Linear):
    """Logits of the experts, in float32 whatever the type of the weights: a rounded logit may choose another expert."""

    def forward(self, x_MD: Tensor) -> Tensor:
        """(M, D) -> (M, E), float32."""
        with torch.autocast(x_MD.device.type, enabled=False):
            return F.linear(x_MD.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class SelectionBias(nn.Module):
    """Added to the scores of the experts for their choice alone: it has no gradient, and stays in float32."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(experts), requires_grad=False)

    def forward(self, scores_ME: Tensor) -> Tensor:
        """(M, E) -> (M, E)."""
        return scores_ME + self.bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SelectionBias:
        """Follow `.to(device)`, but not `.to(dtype)`: biases of several units differ by hundredths."""

        def keeping_type(bias: Tensor) -> Tensor:
            applied = fn(bias)
            return applied if applied.dtype == bias.dtype else bias.to(applied.device)

        super()._apply(keeping_type, recurse)
        return self


class RoutedExperts(nn.ModuleList):
    """The experts of a layer, which compute a weighted sum of the outputs of those that each token was sent to."""

    def forward(self, x_MD: Tensor, weights_MC: Tensor, chosen_MC: Tensor) -> Tensor:
        """(M, D), (M, C), (M, C) -> (M, D). Each expert computes its tokens in one product; then the outputs return to
        the order of the tokens."""
        pairs = chosen_MC.flatten().argsort(stable=True)
        counts = torch.bincount(chosen_MC.flatten(), minlength=len(self)).tolist()
        inputs = x_MD.index_select(0, pairs // chosen_MC.shape[-1]).split(counts)
        # In training experts without tokens run too: a gradient of zero updates momentum and decays the weights.
        outputs = [expert(x) for expert, x in zip(self, inputs, strict=True) if len(x) or self.training]
        places = torch.empty_like(pairs).scatter_(0, pairs, torch.arange(len(pairs), device=pairs.device))
        y_MCD = torch.cat(outputs).index_select(0, places).unflatten(0, chosen_MC.shape)
        return torch.bmm(weights_MC.unsqueeze(1).to(y_MCD.dtype), y_MCD).squeeze(1)


class Experts(nn.Module):
    """Sum of the experts that the router chooses for each token, weighted by its probabilities; no token is dropped.

    With `moe.shared_size` there is one more expert, which computes all tokens; with `moe.shared_gate` a sigmoid weights
    it.

    Args:
        config: The model.
        dropout: Inside the experts.

    Attributes:
        recorded: Receives the router's logits (M, E) of each call; see `recorded_routing`.
    """

    recorded: list[Tensor] | None = None

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        moe, size = config.moe, config.hidden_size
        self.per_token, self.normalize, self.scale = moe.experts_per_token, moe.normalize_weights, moe.routed_scale
        self.groups, self.groups_per_token, self.is_sigmoid = moe.groups, moe.groups_per_token, moe.scoring == "sigmoid"
        self.router = Router(size, moe.experts, bias=moe.router_bias)
        self.selection = SelectionBias(moe.experts) if moe.selection_bias else None
        self.experts = RoutedExperts(
            FeedForward(config, size=config.expert_size, dropout=dropout) for _ in range(moe.experts)
        )
        shared = moe.shared_size > 0
        self.shared_expert = FeedForward(config, size=moe.shared_size, dropout=dropout) if shared else None
        self.shared_gate = nn.Linear(size, 1, bias=False) if shared and moe.shared_gate else None

    @uncompiled
    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D). Not compiled: the number of tokens of each expert depends on the data."""
        x_MD = x_BTD.flatten(0, -2)
        weights_MC, chosen_MC = self._route(x_MD)
        y_MD = self.experts(x_MD, weights_MC, chosen_MC)
        if self.shared_expert is not None:
            shared_MD = self.shared_expert(x_MD)
            y_MD = y_MD + (shared_MD if self.shared_gate is None else self.shared_gate(x_MD).sigmoid() * shared_MD)
        return y_MD.view(x_BTD.shape)

    def _route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (float32) and numbers of the experts of each token, (M, C)."""
        logits_ME = self.router(x_MD)
        if self.recorded is not None:
            self.recorded.append(logits_ME)
        scores_ME = logits_ME.sigmoid() if self.is_sigmoid else logits_ME.softmax(dim=-1, dtype=torch.float32)
        if self.selection is None and self.groups == 1:
            weights_MC, chosen_MC = scores_ME.topk(self.per_token, dim=-1)
        else:
            chosen_MC = self._choose(scores_ME.detach())
            weights_MC = scores_ME.gather(-1, chosen_MC)
        if self.normalize:
            weights_MC = weights_MC / weights_MC.sum(dim=-1, keepdim=True)
        return weights_MC if self.scale == 1.0 else weights_MC * self.scale, chosen_MC

    def _choose(self, scores_ME: Tensor) -> Tensor:
        """The best experts of each token in its best groups, (M, C)."""
        if self.selection is not None:
            scores_ME = self.selection(scores_ME)
        if self.groups > 1:
            scores_MGX = scores_ME.unflatten(-1, (self.groups, -1))
            groups_MG = scores_MGX.topk(2 if self.is_sigmoid else 1, dim=-1).values.sum(dim=-1)
            best_MX = groups_MG.topk(self.groups_per_token, dim=-1).indices
            others_MG = torch.ones_like(groups_MG, dtype=torch.bool).scatter_(-1, best_MX, False)
            scores_ME = scores_MGX.masked_fill(others_MG.unsqueeze(-1), float("-inf")).flatten(-2)
        return scores_ME.topk(self.per_token, dim=-1).indices


@contextmanager
def recorded_routing(model: nn.Module) -> Iterator[Sequence[Tensor]]:
    """A context in which the list receives the routers' logits (M, E) of each layer, in the order of computation."""
    layers = [module for module in model.modules() if isinstance(module, Experts)]
    logits: list[Tensor] = []
    try:
        for layer in layers:
            layer.recorded = logits
        yield logits
    finally:
        for layer in layers:
            layer.recorded = None
