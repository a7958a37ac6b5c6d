"""`MoEConfig`, the mixtures of experts of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.numbers import Positive, PositiveOrZero, Width, WidthOrZero
from onmt_llm.config.section import Section


class MoEConfig(Section):
    """Mixture of experts: feed-forward layers that send each token to a few of many experts (Shazeer et al. 2017)."""

    experts: Annotated[int, Field(ge=0, le=2**12)] = 0
    """Number of experts in each such layer; 0 = ordinary feed-forward layers."""
    experts_per_token: Annotated[int, Field(ge=1, le=2**12)] = 2
    """Number of experts that compute each token: those with the largest router probabilities. No token is dropped."""
    expert_size: Width | None = None
    """Inner width of an expert; null = `ffn_size`."""
    normalize_weights: bool = True
    """Divide the probabilities of a token's experts by their sum, which equals a softmax over these experts alone."""
    router_bias: bool = False
    """Bias in the router (gpt-oss)."""
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    """From the router's logits to the scores of the experts; `sigmoid` scores each expert by itself (DeepSeek-V3)."""
    selection_bias: bool = False
    """A number for each expert is added to its score when experts are chosen, but not when they are weighted. It
    balances their loads and has no gradient (DeepSeek-V3)."""
    groups: Annotated[int, Field(ge=1, le=2**12)] = 1
    """The experts are divided into groups of equal size, and each token first chooses `groups_per_token` of them
    (DeepSeek). A group's score is that of its best expert, or with `scoring: sigmoid` the sum of its best two."""
    groups_per_token: Annotated[int, Field(ge=1, le=2**12)] = 1
    """Number of groups whose experts a token may choose."""
    routed_scale: Positive = 1.0
    """Multiply the weights of a token's experts by this number (DeepSeek)."""
    shared_size: WidthOrZero = 0
    """Inner width of a further expert that computes every token; 0 = none."""
    shared_gate: bool = True
    """The output of that expert is weighted by a sigmoid gate (Qwen2-MoE), instead of being added as it is
    (DeepSeek)."""
    dense_layers: list[Annotated[int, Field(ge=0, le=1024)]] = []
    """Numbers of the decoder blocks, from 0, with an ordinary feed-forward layer, of width `ffn_size`."""
    balance_loss: PositiveOrZero = 0.001
    """Weight of the load-balancing loss in training (Fedus et al. 2022), unless `lambda_balance` is set."""

    def check(self, *, encoder_layers: int, decoder_layers: int) -> None:
        """Check the settings for a model with these blocks.

        Raises:
            ValueError: They do not fit it, or each other.
        """
        if encoder_layers:
            raise ValueError(
                f"moe.experts must be 0 in a model with an encoder, but is {self.experts} with encoder_layers "
                f"{encoder_layers}"
            )
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"moe.experts_per_token must be at most moe.experts, but is {self.experts_per_token} with moe.experts "
                f"{self.experts}"
            )
        if any(layer >= decoder_layers for layer in self.dense_layers):
            raise ValueError(
                f"moe.dense_layers must be below decoder_layers, {decoder_layers}, but is {self.dense_layers}"
            )
        least = self.groups * (2 if self.scoring == "sigmoid" and self.groups > 1 else 1)
        if self.experts % self.groups or self.experts < least:
            raise ValueError(
                f"moe.groups must divide moe.experts into groups of at least {least // self.groups}, but is "
                f"{self.groups} with moe.experts {self.experts}"
            )
        if self.groups_per_token > self.groups:
            raise ValueError(
                f"moe.groups_per_token must be at most moe.groups, but is {self.groups_per_token} with moe.groups "
                f"{self.groups}"
            )
        if self.experts_per_token > self.experts // self.groups * self.groups_per_token:
            raise ValueError(
                f"moe.groups_per_token must leave a token at least moe.experts_per_token, {self.experts_per_token}, "
                f"experts to choose from, but is {self.groups_per_token}"
            )
