"""Build the optimiser of a run: parameter groups, learning rates, gradient scaling and clipping."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from onmt_llm.config.learning import OptimConfig
from onmt_llm.errors import ConfigError
from onmt_llm.training.optim.kahan import KahanAdamW
from onmt_llm.training.optim.registry import HIDDEN, OPTIMIZERS, Groups, adam_arguments
from onmt_llm.training.process.shards import total_norm

RATE_FACTOR = "rate_factor"
"""Key of a group: its learning rate as a multiple of the run's."""


def build_optimizer(model: nn.Module, settings: OptimConfig, *, pure_bf16: bool = False) -> Optimizer:
    """The optimiser `settings.optim` over the parameters of `model` that require a gradient.

    Args:
        model: The model.
        settings: Name and settings.
        pure_bf16: The trained weights are bf16, and the optimiser keeps their rounding errors.

    Raises:
        ConfigError: No parameter is trainable, or the optimiser cannot train bf16 weights.
        UnsupportedError: The optimiser's package is missing, or does not work on this machine.
    """
    groups = parameter_groups(model, settings.weight_decay, lora_b_rate=settings.loraplus_lr_ratio)
    if not pure_bf16:
        return OPTIMIZERS[settings.optim].build(groups, settings)
    if settings.optim != "adamw":
        raise ConfigError(f"pure_bf16 needs optim: adamw, but optim is {settings.optim}.")
    return KahanAdamW(groups, **adam_arguments(settings))


def parameter_groups(model: nn.Module, weight_decay: float, *, lora_b_rate: float = 1.0) -> Groups:
    """Trainable parameters in groups: by weight decay (none for biases, norms and embeddings), by learning rate, and by
    `HIDDEN`, which marks matrices other than embeddings and the output layer.

    Args:
        model: The model.
        weight_decay: Weight decay of the matrices.
        lora_b_rate: Learning rate of the adapters' B matrices, as a multiple of the run's (LoRA+).
    """
    embeddings = [m for m in model.modules() if "Embedding" in type(m).__name__]
    undecayed = {id(p) for module in embeddings for p in module.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[tuple[float, bool, float], list[nn.Parameter]] = {}
    for parameter in trainable(model):
        name = names[id(parameter)]
        matrix = parameter.ndim == 2 and id(parameter) not in undecayed
        rate = lora_b_rate if name.rpartition(".")[2] == "lora_b" else 1.0
        kind = (rate, matrix and not name.startswith("lm_head"), weight_decay if matrix else 0.0)
        groups.setdefault(kind, []).append(parameter)
    if not groups:
        raise ConfigError("At least one parameter must be trainable, but all of them are frozen.")
    order = sorted(groups, key=lambda kind: (kind[0] != 1.0, not kind[1], -kind[2]))
    return [{"params": groups[k], "weight_decay": k[2], RATE_FACTOR: k[0], HIDDEN: k[1]} for k in order]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters in the model's order; tied ones once."""
    return [p for p in model.parameters() if p.requires_grad]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of the next step: `rate` times the factor of each group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE_FACTOR, 1.0)


def gradients(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    """The existing gradients of `parameters`."""
    return [p.grad for p in parameters if p.grad is not None]


def scale_and_clip(parameters: Iterable[nn.Parameter], *, factor: float, max_norm: float) -> float:
    """Multiply the gradients by `factor`, then clip them to `max_norm`.

    Args:
        parameters: Owners of the gradients.
        factor: 1 / (number of trained tokens x loss scale).
        max_norm: Largest global L2 norm; 0 = no clipping.

    Returns:
        The L2 norm of all gradients after scaling and before clipping; inf or nan if any gradient is.
    """
    found = gradients(parameters)
    if not found:
        return 0.0
    norm = float(total_norm(found)) * factor
    if max_norm > 0 and norm > max_norm:
        factor *= max_norm / norm
    if factor != 1.0:
        torch._foreach_mul_(found, factor)
    return norm
