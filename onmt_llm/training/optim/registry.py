"""Optimisers by name.

One meaning of `weight_decay` everywhere: decoupled (Loshchilov and Hutter 2019), and only on matrices that are not
embeddings. Biases, norms and embeddings are spared.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from onmt_llm.config.training.optimizer import OptimConfig
from onmt_llm.log import log_once
from onmt_llm.optional import require
from onmt_llm.registry import Registry

Groups = list[dict[str, Any]]
OPTIMIZERS: Registry[Callable[[Groups, OptimConfig], Optimizer]] = Registry("optim")
HIDDEN = "hidden"
"""Key of a group: its parameters are matrices inside the blocks, which some optimisers treat apart."""
_DECAY = "decoupled_weight_decay"


@OPTIMIZERS.register("sgd")
def sgd(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Plain stochastic gradient descent, no momentum."""
    return torch.optim.SGD(groups, lr=settings.learning_rate)


@OPTIMIZERS.register("adam")
def adam(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adam (Kingma and Ba 2015)."""
    return torch.optim.Adam(groups, decoupled_weight_decay=True, fused=True, **adam_arguments(settings))


@OPTIMIZERS.register("adamw")
def adamw(groups: Groups, settings: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019), in torch's fused form, which CPUs have too."""
    return torch.optim.AdamW(groups, fused=True, **adam_arguments(settings))


@OPTIMIZERS.register("adafactor")
def adafactor(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adafactor (Shazeer and Stern 2018): row and column statistics in place of full second moments."""
    return torch.optim.Adafactor(groups, lr=settings.learning_rate)


@OPTIMIZERS.register("adagrad")
def adagrad(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adagrad (Duchi et al. 2011)."""
    start = settings.adagrad_accumulator_init
    apart = _decay_apart(groups)
    rate = settings.learning_rate
    return _decaying(torch.optim.Adagrad(apart, lr=rate, initial_accumulator_value=start, fused=True))


@OPTIMIZERS.register("adadelta")
def adadelta(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adadelta (Zeiler 2012), whose learning rate is usually 1."""
    return _decaying(torch.optim.Adadelta(_decay_apart(groups), lr=settings.learning_rate))


@OPTIMIZERS.register("lion")
def lion(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Lion (Chen et al. 2023): the sign of a momentum; wants a tenth of AdamW's learning rate."""
    return _library("lion").Lion(groups, lr=settings.learning_rate, betas=_betas(settings))


@OPTIMIZERS.register("muon")
def muon(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices, their momentum made orthogonal; AdamW for all others.

    Its steps are scaled to the size that AdamW's have (Liu et al. 2025), so that both take the same learning rate.
    """
    shared = {"lr": settings.learning_rate, "use_adjusted_lr": True}
    rest = {**shared, "betas": _betas(settings), "eps": settings.adam_eps}
    apart = [{**group, **(shared if group[HIDDEN] else rest), "use_muon": group[HIDDEN]} for group in groups]
    return _library("muon").Muon(apart, momentum=settings.muon_momentum)


@OPTIMIZERS.register("galore")
def galore(groups: Groups, settings: OptimConfig) -> Optimizer:
    """GaLore (Zhao et al. 2024): AdamW whose moments, for hidden matrices, are of gradients projected to a low rank."""
    library = _library("galore")
    projection = {
        "rank": settings.galore_rank,
        "update_proj_gap": settings.galore_gap,
        "scale": settings.galore_scale,
        "projection_type": "std",
    }
    apart = [{**group, **(projection if group[HIDDEN] else {})} for group in groups]
    optimizer = library.GaLore(apart, **adam_arguments(settings))
    optimizer.register_state_dict_post_hook(_plain_projectors)
    optimizer.register_step_pre_hook(_real_projectors)
    return optimizer


@OPTIMIZERS.register("fusedadam")
def fusedadam(groups: Groups, settings: OptimConfig) -> Optimizer:
    """NVIDIA apex's FusedAdam where it is installed, else torch's fused AdamW."""
    fused = _apex_fused_adam()
    if fused is None or not torch.cuda.is_available():
        reason = "NVIDIA's apex is not installed" if fused is None else "apex needs a GPU"
        log_once(f"optim fusedadam: {reason}; torch's fused AdamW takes its place.")
        return adamw(groups, settings)
    return fused(groups, adam_w_mode=True, **adam_arguments(settings))


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


@OPTIMIZERS.register("lion8bit")
def lion8bit(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Lion with an 8-bit momentum: one byte of state a parameter."""
    return _bitsandbytes("Lion8bit", groups, settings)


@OPTIMIZERS.register("pagedlion8bit")
def pagedlion8bit(groups: Groups, settings: OptimConfig) -> Optimizer:
    """As `lion8bit`, its momentum in memory that the GPU pages to the host."""
    return _bitsandbytes("PagedLion8bit", groups, settings)


def adam_arguments(settings: OptimConfig) -> dict[str, Any]:
    """Learning rate, betas and epsilon."""
    return {"lr": settings.learning_rate, "betas": _betas(settings), "eps": settings.adam_eps}


def _betas(settings: OptimConfig) -> tuple[float, float]:
    return settings.adam_beta1, settings.adam_beta2


def _decay_apart(groups: Groups) -> Groups:
    """Groups whose decay is done by `_decaying`, not by an optimiser that would add it to the gradient."""
    return [{**group, "weight_decay": 0.0, _DECAY: group["weight_decay"]} for group in groups]


def _decaying(optimizer: Optimizer) -> Optimizer:
    """The optimiser, with decoupled weight decay before each of its steps."""

    @torch.no_grad()
    def decay(optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            owners = [p for p in group["params"] if p.grad is not None]
            if group[_DECAY] and owners:
                torch._foreach_mul_(owners, 1 - group["lr"] * group[_DECAY])

    optimizer.register_step_pre_hook(decay)
    return optimizer


def check_package(name: str) -> None:
    """Make sure of the package that the optimiser `name` comes from.

    Raises:
        UnsupportedError: It is missing.
    """
    if name in ("lion", "muon", "galore"):
        _library(name)
    elif name.endswith("bit"):
        require("bitsandbytes", f"optim: {name}")


def _library(name: str) -> Any:
    return require("pytorch_optimizer", f"optim: {name}")


def _plain_projectors(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """GaLore keeps the basis of a projection in an object: plain data is what a checkpoint holds."""
    for index, slots in state["state"].items():
        projector = slots.get("projector")
        if projector is not None and not isinstance(projector, dict):
            plain = {"ortho_matrix": projector.ortho_matrix, "last_svd_step": projector.last_svd_step}
            state["state"][index] = {**slots, "projector": plain}


def _real_projectors(optimizer: Optimizer, *_: object) -> None:
    """The way back, before the first step after a state was loaded."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            plain = optimizer.state[parameter].get("projector")
            if isinstance(plain, dict):
                keys = ("rank", "update_proj_gap", "scale", "projection_type")
                utils = require("pytorch_optimizer.optimizer.utils.galore", "optim: galore", "pytorch_optimizer")
                projector = utils.GaLoreProjector(**{key: group[key] for key in keys})
                projector.ortho_matrix, projector.last_svd_step = plain["ortho_matrix"], plain["last_svd_step"]
                optimizer.state[parameter]["projector"] = projector


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
    arguments = adam_arguments(settings)
    if "Lion" in name:
        del arguments["eps"]
    return getattr(bnb_optim, name)(groups, **arguments)
