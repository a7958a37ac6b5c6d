"""Low-rank adapters (Hu et al. 2021) around frozen linear and embedding layers.

The layer computes base(x) + (alpha / rank) * x A' B' with A of shape (rank, in) and B of shape (out, rank). B starts at
zero, so that a new adapter changes nothing, to the bit.

The adapter is kept in float32 whatever the type of the base (an update of 1e-5 is lost in bf16) and cast to the type
of the activations on use, which costs little since it is small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.nn import wrap
from onmt_llm.nn.embeddings import TokenEmbedding
from onmt_llm.nn.quantized import Int8Linear, linear_weight


class LoRALinear(nn.Module):
    """A frozen linear layer (plain, Int8Linear or bitsandbytes') with an adapter.

    Args:
        base: The layer; it is kept as `base` and frozen.
        rank: Inner size of the adapter.
        alpha: The adapter's output is scaled by alpha / rank.
        dropout: Of the adapter's input, while training.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.scale, self.dropout = _scale(rank, alpha), dropout
        self.lora_a, self.lora_b = _adapter(rank, self.in_features, self.out_features, base.weight.device)  # type: ignore[arg-type]
        nn.init.uniform_(self.lora_a, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the type of the base's output."""
        y = self.base(x)
        a, b = self.lora_a.to(y.dtype), (self.lora_b * self.scale).to(y.dtype)
        low = F.linear(F.dropout(x, self.dropout, self.training).to(y.dtype), a)
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), b.t()).view(y.shape)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """(out, in) weight of a plain layer that computes the same, in the base's type (float32 if it is quantised)."""
        weight = linear_weight(self.base)
        return (weight.float() + self.scale * (self.lora_b @ self.lora_a)).to(weight.dtype)

    def extra_repr(self) -> str:
        return f"rank={self.lora_a.shape[0]}, scale={self.scale}, dropout={self.dropout}"


class LoRAEmbedding(nn.Module):
    """A frozen token embedding with an adapter: A is (rank, tokens), B is (size, rank).

    With tied embeddings the output layer uses the adapted matrix, since it asks this module for its `project`: the two
    stay tied while they are trained, and a merged embedding is all that has to be saved.

    Args:
        base: The embedding; it is kept as `base` and frozen.
        rank: Inner size of the adapter.
        alpha: The adapter's output is scaled by alpha / rank.
        dropout: Of the adapter's vectors, while training.
    """

    def __init__(self, base: TokenEmbedding, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout = _scale(rank, alpha), dropout
        self.lora_a, self.lora_b = _adapter(rank, base.num_embeddings, base.embedding_dim, base.weight.device)
        nn.init.normal_(self.lora_a, std=1 / rank)

    def forward(self, ids_BT: Tensor) -> Tensor:
        y_BTD = self.base(ids_BT)
        low = F.dropout(F.embedding(ids_BT, self.lora_a.t()), self.dropout, self.training)
        return y_BTD + F.linear(low, self.lora_b * self.scale).to(y_BTD.dtype)

    def project(self, x_BTD: Tensor) -> Tensor:
        """Scores of all tokens (B, T, V) with the adapted matrix."""
        y_BTV = self.base.project(x_BTD)
        low = F.linear(F.dropout(x_BTD, self.dropout, self.training), (self.lora_b * self.scale).t().to(x_BTD.dtype))
        return y_BTV + F.linear(low, self.lora_a.t().to(x_BTD.dtype))

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """(V, D) weight of a plain embedding that computes the same."""
        weight = self.base.weight
        return (weight.float() + self.scale * (self.lora_b @ self.lora_a).t()).to(weight.dtype)

    def extra_repr(self) -> str:
        return f"rank={self.lora_a.shape[0]}, scale={self.scale}, dropout={self.dropout}"


def _scale(rank: int, alpha: float) -> float:
    if rank < 1:
        raise ConfigError(f"lora_rank must be >= 1, but is {rank}.")
    return alpha / rank


def _adapter(rank: int, inputs: int, outputs: int, device: torch.device) -> tuple[nn.Parameter, nn.Parameter]:
    a = torch.empty(rank, inputs, dtype=torch.float32, device=device)
    b = torch.zeros(outputs, rank, dtype=torch.float32, device=device)
    return nn.Parameter(a), nn.Parameter(b)


def add_lora(
    model: nn.Module,
    names: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    embedding: bool = False,
) -> list[str]:
    """Wrap the named layers, after they were loaded and quantised; nothing else is frozen yet (`freeze_all_but_lora`).

    Args:
        model: The model; changed in place.
        names: Layer names as `wrap.match` takes them.
        rank: Inner size of the adapters.
        alpha: Their outputs are scaled by alpha / rank.
        dropout: Of the adapters' inputs.
        embedding: Wrap the token embeddings too (with tied embeddings, the output layer thereby).

    Returns:
        Dotted paths of the wrapped layers.

    Raises:
        ConfigError: No layer is named, a name matches nothing, or a layer cannot take an adapter.
    """
    names = [*names, "embed_tokens"] if embedding else list(names)
    if not names:
        raise ConfigError("lora_layers must name at least one layer, but is empty.", hint="or set lora_embedding: true")
    for path in wrap.match(model, names):
        _check_target(model.get_submodule(path), path)

    def factory(module: nn.Module, path: str) -> nn.Module:
        if isinstance(module, TokenEmbedding):
            return LoRAEmbedding(module, rank, alpha, dropout)
        return LoRALinear(module, rank, alpha, dropout)

    return wrap.replace(model, names, factory)


def _check_target(module: nn.Module, path: str) -> None:
    if isinstance(module, LoRALinear | LoRAEmbedding):
        raise ConfigError(f"'{path}' must be a layer without an adapter, but has one already.")
    if not isinstance(module, nn.Linear | Int8Linear | TokenEmbedding):
        hint = "the output layer is tied to the embedding: use lora_embedding" if path == "lm_head" else None
        kind = type(module).__name__
        raise ConfigError(f"LoRA must wrap a linear or token embedding layer, but '{path}' is a {kind}.", hint=hint)


def lora_modules(model: nn.Module) -> dict[str, LoRALinear | LoRAEmbedding]:
    """Wrapped layers by dotted path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALinear | LoRAEmbedding)}


def freeze_all_but_lora(model: nn.Module) -> int:
    """Leave only the adapters trainable, the output layer included among the frozen.

    Returns:
        Number of trainable parameters: rank * (in + out) summed over the wrapped layers.
    """
    model.requires_grad_(False)
    trainable = 0
    for module in lora_modules(model).values():
        for parameter in (module.lora_a, module.lora_b):
            parameter.requires_grad_(True)
            trainable += parameter.numel()
    return trainable


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors under the names of an adapter checkpoint: `<layer>.lora_a`, `<layer>.lora_b`."""
    return {
        f"{path}.{name}": tensor.detach()
        for path, module in lora_modules(model).items()
        for name, tensor in (("lora_a", module.lora_a), ("lora_b", module.lora_b))
    }


@torch.no_grad()
def load_lora_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy an adapter checkpoint's tensors into the wrapped layers.

    Raises:
        CheckpointError: Names or shapes differ from the model's adapters; the message lists them all.
    """
    own = lora_state(model)
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} belongs to no wrapped layer" for name in tensors if name not in own]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        raise CheckpointError(f"The adapter must fit the model's LoRA layers, but: {'; '.join(problems)}.")
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def merge_lora(model: nn.Module) -> list[str]:
    """Fold the adapters into their layers, for generation; those around quantised layers stay as they are.

    Returns:
        Dotted paths of the layers that are plain again.
    """
    merged = []
    for path, module in lora_modules(model).items():
        base = module.base
        if type(base) not in (nn.Linear, TokenEmbedding):
            continue
        base.weight = nn.Parameter(module.merged_weight(), requires_grad=False)
        wrap.replace(model, [path], lambda wrapped, _: wrapped.base)  # type: ignore[arg-type, return-value]
        merged.append(path)
    return merged
