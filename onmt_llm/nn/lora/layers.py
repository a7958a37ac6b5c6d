"""Low-rank adapters (Hu et al. 2021) around frozen linear and embedding layers.

The layer computes base(x) + scale * x A' B' with A of shape (rank, in) and B of shape (out, rank); scale is
alpha / rank. B starts at zero, so that a new adapter changes nothing, to the bit. `Variant` names what may differ:

- rsLoRA (Kalajdzievski 2023): scale = alpha / sqrt(rank), so that higher ranks learn as fast.
- DoRA (Liu et al. 2024): the rows of W + scale * B A are brought to a trained length, the magnitude. As in the paper
  (section 4.3) no gradient goes through the length that they have.
- PiSSA and LoftQ: the adapter starts with a share of the weight, which is taken out of the base (`lora_init.py`).

The adapter is kept in float32 whatever the type of the base (an update of 1e-5 is lost in bf16) and cast to the type
of the activations on use, which costs little since it is small.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.nn import wrap
from onmt_llm.nn.embeddings import TokenEmbedding
from onmt_llm.nn.expand import twins
from onmt_llm.nn.quantized import Int8Linear, linear_weight, weight_blocks
from onmt_llm.nn.recompute import recompute

LoraInit = Literal["default", "pissa", "loftq"]
TRAINED = ("lora_a", "lora_b", "lora_magnitude")
"""What of an adapter is trained; a layer has the first two, and the third with DoRA."""
KEPT = ("lora_start_a", "lora_start_b", "lora_shift_a", "lora_shift_b")
"""What an adapter that did not begin with B = 0 must remember; see `lora_init.py`."""


@dataclass(frozen=True)
class Variant:
    """How adapters differ from plain LoRA, and from each other.

    Attributes:
        rslora: The scale is alpha / sqrt(rank).
        dora: The length of each row is trained apart from its direction.
        ranks: Rank of single layers, by name as `wrap.match` takes them; the longest name counts.
        alphas: Alpha of single layers.
        init: What A and B begin with.
        init_iter: Steps of that initialisation; None = as it likes.
    """

    rslora: bool = False
    dora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    init: LoraInit = "default"
    init_iter: int | None = None

    def size(self, path: str, rank: int, alpha: float) -> tuple[int, float]:
        """Rank and scale of the layer at `path`, where others have `rank` and `alpha`."""
        rank, alpha = wrap.lookup(self.ranks, path, rank), wrap.lookup(self.alphas, path, alpha)
        if rank < 1:
            raise ConfigError(f"lora_rank must be >= 1, but is {rank} for '{path}'.")
        return rank, alpha / (math.sqrt(rank) if self.rslora else rank)

    def kept(self, *, embedding: bool) -> tuple[str, ...]:
        """Which of `KEPT` a layer has."""
        if self.init == "default" or embedding:
            return ()
        return KEPT if self.init == "loftq" and (self.init_iter or 1) > 1 else KEPT[:2]


PLAIN = Variant()


class LoRALinear(nn.Module):
    """A frozen linear layer (plain, Int8Linear or bitsandbytes') with an adapter.

    Args:
        base: The layer; it is kept as `base` and frozen.
        rank: Inner size of the adapter.
        scale: The adapter's output is multiplied by it.
        dropout: Of the adapter's input, while training.
        dora: The length of the rows is trained.
        kept: Tensors of `KEPT` that the adapter has.

    Attributes:
        recomputed: Parts of the model that are computed again in the backward pass (`recompute.py`).
    """

    recomputed: Collection[str] = ()
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_magnitude: nn.Parameter | None
    base_squares: Tensor

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        *,
        dora: bool = False,
        kept: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.scale, self.dropout, self.off = scale, dropout, False
        _add_tensors(self, rank, self.in_features, self.out_features, base.weight.device, kept)  # type: ignore[arg-type]
        nn.init.uniform_(self.lora_a, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))
        self.lora_magnitude = None
        if dora:
            squares_O = torch.cat([rows.square().sum(1) for rows in weight_blocks(base)])
            self.register_buffer("base_squares", squares_O, persistent=False)
            self.lora_magnitude = nn.Parameter(squares_O.sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the type of the base's output."""
        y = self.base(x)
        if self.off:
            return self._begun_with(x, y)
        b = self.lora_b * self.scale
        if self.lora_magnitude is not None:
            growth_O = self.lora_magnitude / self._row_lengths()
            plain = y if self.base.bias is None else y - self.base.bias
            # Added to y rather than multiplied into it: bf16 has no number between 1 and 1.008.
            y = torch.addcmul(y, plain, (growth_O - 1).to(y.dtype))
            b = b * growth_O[:, None]
        again = "lora" in self.recomputed and torch.is_grad_enabled()
        low = recompute(self, self._low, x, y.dtype) if again else self._low(x, y.dtype)
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), b.to(y.dtype).t()).view(y.shape)

    def _low(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., in) -> (..., rank)."""
        return F.linear(F.dropout(x, self.dropout, self.training).to(dtype), self.lora_a.to(dtype))

    def _begun_with(self, x: Tensor, y: Tensor) -> Tensor:
        """What the layer computed before the adapter was trained: y, and what was taken out of the base for it."""
        a, b = getattr(self, "lora_start_a", None), getattr(self, "lora_start_b", None)
        return (
            y
            if a is None or b is None
            else y + F.linear(F.linear(x.to(y.dtype), a.to(y.dtype)), (b * self.scale).to(y.dtype))
        )

    @torch.no_grad()
    def _row_lengths(self) -> Tensor:
        """Lengths of the rows of W + scale * B A; W is read once, for its product with A, and never copied."""
        products_OR = torch.cat([rows @ self.lora_a.t() for rows in weight_blocks(self.base)])
        return _lengths(self.base_squares, products_OR, self.lora_a, self.lora_b, self.scale)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """(out, in) weight of a plain layer that computes the same, in the base's type (float32 if it is quantised)."""
        weight = linear_weight(self.base)
        merged = adapted_weight(weight.float(), self.lora_a, self.lora_b, self.scale, self.lora_magnitude)
        return merged.to(weight.dtype)

    @torch.no_grad()
    def reset_magnitude(self) -> None:
        """Make the lengths of the rows, as A and B are now, those to begin with."""
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(self._row_lengths())

    def extra_repr(self) -> str:
        return _repr(self)


class LoRAEmbedding(nn.Module):
    """A frozen token embedding with an adapter: A is (rank, tokens), B is (size, rank).

    With tied embeddings the output layer uses the adapted matrix, since it asks this module for its `project`: the two
    stay tied while they are trained, and a merged embedding is all that has to be saved.

    Args:
        base: The embedding; it is kept as `base` and frozen.
        rank: Inner size of the adapter.
        scale: The adapter's output is multiplied by it.
        dropout: Of the adapter's vectors, while training.
        dora: The length of each dimension, over all tokens, is trained (as peft has it).
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_magnitude: nn.Parameter | None
    base_squares: Tensor

    def __init__(
        self, base: TokenEmbedding, rank: int, scale: float, dropout: float = 0.0, *, dora: bool = False
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale, self.dropout, self.off = scale, dropout, False
        _add_tensors(self, rank, base.num_embeddings, base.embedding_dim, base.weight.device)
        nn.init.normal_(self.lora_a, std=1 / rank)
        self.lora_magnitude = None
        if dora:
            squares_D = base.weight.float().square().sum(0)
            self.register_buffer("base_squares", squares_D, persistent=False)
            self.lora_magnitude = nn.Parameter(squares_D.sqrt())

    def forward(self, ids_BT: Tensor) -> Tensor:
        y_BTD = self.base(ids_BT)
        if self.off:
            return y_BTD
        growth_D = self._growth()
        low = F.dropout(F.embedding(ids_BT, self.lora_a.t()), self.dropout, self.training)
        b = self.lora_b * self.scale
        if growth_D is not None:
            y_BTD, b = torch.addcmul(y_BTD, y_BTD, (growth_D - 1).to(y_BTD.dtype)), b * growth_D[:, None]
        return y_BTD + F.linear(low, b).to(y_BTD.dtype)

    def project(self, x_BTD: Tensor) -> Tensor:
        """Scores of all tokens (B, T, V) with the adapted matrix."""
        if self.off:
            return self.base.project(x_BTD)
        growth_D = self._growth()
        if growth_D is not None:
            x_BTD = torch.addcmul(x_BTD, x_BTD, (growth_D - 1).to(x_BTD.dtype))
        y_BTV = self.base.project(x_BTD)
        low = F.linear(F.dropout(x_BTD, self.dropout, self.training), (self.lora_b * self.scale).t().to(x_BTD.dtype))
        return y_BTV + F.linear(low, self.lora_a.t().to(x_BTD.dtype))

    def _growth(self) -> Tensor | None:
        """What DoRA multiplies each dimension by."""
        if self.lora_magnitude is None:
            return None
        with torch.no_grad():
            products_DR = (self.lora_a @ self.base.weight.float()).t()
            lengths_D = _lengths(self.base_squares, products_DR, self.lora_a, self.lora_b, self.scale)
        return self.lora_magnitude / lengths_D

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """(V, D) weight of a plain embedding that computes the same."""
        weight = self.base.weight
        merged = adapted_weight(weight.float().t(), self.lora_a, self.lora_b, self.scale, self.lora_magnitude)
        return merged.t().to(weight.dtype).contiguous()

    def extra_repr(self) -> str:
        return _repr(self)


def adapted_weight(weight: Tensor, a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None = None) -> Tensor:
    """W + scale * B A (out, in), its rows brought to the lengths in `magnitude` where DoRA has them; all in float32."""
    merged = torch.addmm(weight, b.float(), a.float(), alpha=scale)
    if magnitude is None:
        return merged
    return merged * (magnitude.float() / merged.norm(dim=1).clamp(min=_TINY))[:, None]


_TINY = torch.finfo(torch.float32).tiny


def _lengths(base_squares_O: Tensor, products_OR: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Lengths of the rows of W + scale * B A from those of W, |W|^2 = `base_squares_O`, and W A' = `products_OR`."""
    cross_O = (products_OR * b).sum(1)
    own_O = ((b @ (a @ a.t())) * b).sum(1)
    return (base_squares_O + 2 * scale * cross_O + scale**2 * own_O).clamp(min=_TINY).sqrt()


def _add_tensors(
    module: nn.Module, rank: int, inputs: int, outputs: int, device: torch.device, kept: Sequence[str] = ()
) -> None:
    """A (not set yet), B = 0 and, all zeros, what the adapter must remember."""
    a = torch.empty(rank, inputs, dtype=torch.float32, device=device)
    b = torch.zeros(outputs, rank, dtype=torch.float32, device=device)
    module.lora_a, module.lora_b = nn.Parameter(a), nn.Parameter(b)
    for name in kept:
        module.register_buffer(name, torch.zeros_like(a if name.endswith("a") else b))


def _repr(module: LoRALinear | LoRAEmbedding) -> str:
    dora = "" if module.lora_magnitude is None else ", dora"
    return f"rank={module.lora_a.shape[0]}, scale={module.scale:g}, dropout={module.dropout}{dora}"


def add_lora(
    model: nn.Module,
    names: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    embedding: bool = False,
    variant: Variant = PLAIN,
) -> list[str]:
    """Wrap the named layers, after they were loaded and quantised; nothing else is frozen yet (`freeze_all_but_lora`).

    Args:
        model: The model; changed in place.
        names: Layer names as `wrap.match` takes them.
        rank: Inner size of the adapters.
        alpha: Their outputs are scaled by alpha / rank.
        dropout: Of the adapters' inputs.
        embedding: Wrap the token embeddings too (with tied embeddings, the output layer thereby).
        variant: How they differ from plain LoRA.

    Returns:
        Dotted paths of the wrapped layers.

    Raises:
        ConfigError: No layer is named, a name matches nothing, or a layer cannot take an adapter.
    """
    names = [*names, "embed_tokens"] if embedding else list(names)
    if not names:
        raise ConfigError("lora_layers must name at least one layer, but is empty.", hint="or set lora_embedding: true")
    paths = wrap.match(model, names)
    for path in paths:
        _check_target(model.get_submodule(path), path)
    check_ranks(model, paths, rank, variant)
    for option, patterns in (("lora_rank_pattern", variant.ranks), ("lora_alpha_pattern", variant.alphas)):
        idle = [name for name in patterns if not any(wrap.means(name, path) for path in paths)]
        if idle:
            raise ConfigError(f"{option} must name layers that have an adapter, but {', '.join(idle)} has none.")

    def factory(module: nn.Module, path: str) -> nn.Module:
        own_rank, scale = variant.size(path, rank, alpha)
        if isinstance(module, TokenEmbedding):
            return LoRAEmbedding(module, own_rank, scale, dropout, dora=variant.dora)
        return LoRALinear(module, own_rank, scale, dropout, dora=variant.dora, kept=variant.kept(embedding=False))

    return wrap.replace(model, names, factory)


def check_ranks(model: nn.Module, paths: Sequence[str], rank: int, variant: Variant = PLAIN) -> None:
    """Refuse adapters that are larger than their layers, before any is made.

    Args:
        model: Has the layers; they may be on the meta device.
        paths: Dotted paths of the layers that get an adapter.
        rank: Inner size of the adapters.
        variant: May have other ranks for single layers.

    Raises:
        ConfigError: A rank is above the longer side of its layer's matrix.
    """
    for path in paths:
        _check_rank(variant.size(path, rank, 1.0)[0], model.get_submodule(path), path)


def _check_rank(rank: int, module: nn.Module, path: str) -> None:
    """A rank above the longer side of the matrix takes more memory than training the matrix itself."""
    sides = [getattr(module, side) for side in ("in_features", "out_features") if hasattr(module, side)]
    sides = sides or [module.num_embeddings, module.embedding_dim]
    if rank > max(sides):
        raise ConfigError(f"lora_rank must be at most {max(sides)}, the longer side of '{path}', but is {rank}.")


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


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did before its adapters, or the twins of its blocks, were trained.

    Raises:
        ConfigError: It has none.
    """
    modules = [*lora_modules(model).values(), *twins(model).values()]
    if not modules:
        raise ConfigError("A model without its adapters is asked for, but it has none.")
    try:
        for module in modules:
            module.off = True
        yield
    finally:
        for module in modules:
            module.off = False


def freeze_all_but_lora(model: nn.Module) -> int:
    """Leave only the adapters trainable, the output layer included among the frozen.

    Returns:
        Number of trainable parameters: rank * (in + out) summed over the wrapped layers, with DoRA out more of each.
    """
    model.requires_grad_(False)
    trainable = 0
    for module in lora_modules(model).values():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(True)
            trainable += parameter.numel()
    return trainable


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors under the names of an adapter checkpoint: `<layer>.lora_a`, `<layer>.lora_b` ..."""
    return {
        f"{path}.{name}": tensor.detach()
        for path, module in lora_modules(model).items()
        for name in (*TRAINED, *KEPT)
        if (tensor := getattr(module, name, None)) is not None
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
