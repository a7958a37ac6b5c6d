"""Optimisers by name, over the trainable parameters only.

One meaning of `weight_decay` everywhere: decoupled (Loshchilov and Hutter 2019), and only on matrices that are not
embeddings. Biases, norms and embeddings are spared.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from onmt_llm.config.train import OptimConfig
from onmt_llm.errors import ConfigError
from onmt_llm.log import log_once
from onmt_llm.optional import require
from onmt_llm.registry import Registry

Groups = list[dict[str, Any]]
RATE_FACTOR = "rate_factor"
"""Key of a group: its learning rate as a multiple of the run's."""
OPTIMIZERS: Registry[Callable[[Groups, OptimConfig], Optimizer]] = Registry("optim")


def build_optimizer(model: nn.Module, settings: OptimConfig) -> Optimizer:
    """The optimiser `settings.optim` over the parameters of `model` that require a gradient.

    Raises:
        ConfigError: Nothing is trainable.
        UnsupportedError: The optimiser's package is missing, or does not run here.
    """
    groups = parameter_groups(model, settings.weight_decay, lora_b_rate=settings.loraplus_lr_ratio)
    return OPTIMIZERS.get(settings.optim)(groups, settings)


def parameter_groups(model: nn.Module, weight_decay: float, *, lora_b_rate: float = 1.0) -> Groups:
    """Trainable parameters in groups: with weight decay and without (biases, norms, embeddings), of their own rates.

    Args:
        model: The model.
        weight_decay: Of the matrices.
        lora_b_rate: Learning rate of the B matrices of adapters, as a multiple of that of all others (LoRA+).
    """
    spared_modules = [m for m in model.modules() if "Embedding" in type(m).__name__]
    spared = {id(p) for module in spared_modules for p in module.parameters()}
    sides = {id(p) for name, p in model.named_parameters() if name.rpartition(".")[2] == "lora_b"}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in trainable(model):
        decay = 0.0 if parameter.ndim < 2 or id(parameter) in spared else weight_decay
        rate = lora_b_rate if id(parameter) in sides else 1.0
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ConfigError("At least one parameter must be trainable, but all of them are frozen.")
    order = sorted(groups, key=lambda kind: (kind[0] != 1.0, -kind[1]))
    return [{"params": groups[kind], "weight_decay": kind[1], RATE_FACTOR: kind[0]} for kind in order]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that get a gradient, in the model's order, tied ones once."""
    return [p for p in model.parameters() if p.requires_grad]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use `rate` in the next step, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE_FACTOR, 1.0)


def gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """Those gradients of `parameters` that exist."""
    return [p.grad for p in parameters if p.grad is not None]


def scale_and_clip(parameters: Iterable[nn.Parameter], *, factor: float, max_norm: float) -> float:
    """Multiply the gradients by `factor`, then shrink them to `max_norm`.

    Args:
        parameters: Owners of the gradients.
        factor: 1 / (number of trained tokens x loss scale).
        max_norm: Largest global L2 norm; 0 = no limit.

    Returns:
        The L2 norm of all gradients after scaling and before clipping; inf or nan where one of them is.
    """
    found = gradients(parameters)
    if not found:
        return 0.0
    norm = float(torch.nn.utils.get_total_norm(found)) * factor
    if max_norm > 0 and norm > max_norm:
        factor *= max_norm / norm
    if factor != 1.0:
        torch._foreach_mul_(found, factor)
    return norm


@OPTIMIZERS.register("sgd")
def sgd(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Plain stochastic gradient descent, no momentum."""
    return torch.optim.SGD(groups, lr=settings.learning_rate)


@OPTIMIZERS.register("adam")
def adam(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adam (Kingma and Ba 2015)."""
    return torch.optim.Adam(groups, decoupled_weight_decay=True, fused=True, **_adam_arguments(settings))


@OPTIMIZERS.register("adamw")
def adamw(groups: Groups, settings: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019), in torch's fused form, which CPUs have too."""
    return torch.optim.AdamW(groups, fused=True, **_adam_arguments(settings))


@OPTIMIZERS.register("adafactor")
def adafactor(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adafactor (Shazeer and Stern 2018): row and column statistics in place of full second moments."""
    return torch.optim.Adafactor(groups, lr=settings.learning_rate)


@OPTIMIZERS.register("fusedadam")
def fusedadam(groups: Groups, settings: OptimConfig) -> Optimizer:
    """NVIDIA apex's FusedAdam where it is installed, else torch's fused AdamW."""
    fused = _apex_fused_adam()
    if fused is None or not torch.cuda.is_available():
        reason = "NVIDIA's apex is not installed" if fused is None else "apex needs a GPU"
        log_once(f"optim fusedadam: {reason}; torch's fused AdamW takes its place.")
        return adamw(groups, settings)
    return fused(groups, adam_w_mode=True, **_adam_arguments(settings))


@OPTIMIZERS.register("adamw8bit")
def adamw8bit(groups: Groups, settings: OptimConfig) -> Optimizer:
    """bitsandbytes' AdamW with 8-bit moments (Dettmers et al. 2022)."""
    return _bitsandbytes("AdamW8bit", groups, settings)


@OPTIMIZERS.register("pagedadamw8bit")
def pagedadamw8bit(groups: Groups, settings: OptimConfig) -> Optimizer:
    """As `adamw8bit`, its moments in memory that the GPU pages to the host."""
    return _bitsandbytes("PagedAdamW8bit", groups, settings)


@OPTIMIZERS.register("pagedadamw32bit")
def pagedadamw32bit(groups: Groups, settings: OptimConfig) -> Optimizer:
    """32-bit AdamW, its moments in memory that the GPU pages to the host."""
    return _bitsandbytes("PagedAdamW32bit", groups, settings)


def _adam_arguments(settings: OptimConfig) -> dict[str, Any]:
    return {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_eps,
    }


def _apex_fused_adam() -> Callable[..., Optimizer] | None:
    """FusedAdam of NVIDIA's apex, or None. PyPI's package of that name is a web toolkit without it."""
    try:
        return importlib.import_module("apex.optimizers").FusedAdam
    except (ImportError, AttributeError):
        pass
    if importlib.util.find_spec("apex") is not None:
        log_once("The installed package 'apex' is not NVIDIA's (PyPI's is a web toolkit); it is not used.")
    return None


def _bitsandbytes(name: str, groups: Groups, settings: OptimConfig) -> Optimizer:
    bnb_optim = require("bitsandbytes.optim", f"optim: {settings.optim}", "bitsandbytes")
    if name.startswith("Paged") and not torch.cuda.is_available():
        log_once(f"optim {settings.optim}: there is no GPU memory to page; the moments are ordinary tensors.")
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
    return getattr(bnb_optim, name)(groups, **_adam_arguments(settings))
