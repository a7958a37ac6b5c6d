"""The optimisers: `OPTIMIZERS` holds the name of each, how it is built, and what it needs.

`weight_decay` means the same for all of them: decoupled (Loshchilov and Hutter 2019), and only on matrices that are not
embeddings. Biases, norms and embeddings have none.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from onmt_llm.config.learning import OptimConfig
from onmt_llm.log import log_once
from onmt_llm.optional import require
from onmt_llm.training.process.shards import is_sharded

Groups = list[dict[str, Any]]
Build = Callable[[Groups, OptimConfig], Optimizer]
HIDDEN = "hidden"
"""Key of a group: its parameters are matrices inside the blocks, which some optimisers treat differently."""
_DECAY = "decoupled_weight_decay"


def _sgd(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Plain stochastic gradient descent, no momentum."""
    return torch.optim.SGD(groups, lr=settings.learning_rate)


def _adam(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adam (Kingma and Ba 2015)."""
    return torch.optim.Adam(groups, decoupled_weight_decay=True, fused=True, **adam_arguments(settings))


def _adamw(groups: Groups, settings: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019), torch's fused implementation, which supports CPUs too."""
    return torch.optim.AdamW(groups, fused=True, **adam_arguments(settings))


def _adafactor(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adafactor (Shazeer and Stern 2018): row and column statistics instead of full second moments."""
    return torch.optim.Adafactor(groups, lr=settings.learning_rate)


def _adagrad(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adagrad (Duchi et al. 2011)."""
    start = settings.adagrad_accumulator_init
    apart = _without_decay(groups)
    rate = settings.learning_rate
    fused = not any(map(is_sharded, groups[0]["params"]))  # torch has no fused update of sharded parameters
    return _decaying(torch.optim.Adagrad(apart, lr=rate, initial_accumulator_value=start, fused=fused))


def _adadelta(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Adadelta (Zeiler 2012), whose learning rate is usually 1."""
    return _decaying(torch.optim.Adadelta(_without_decay(groups), lr=settings.learning_rate))


def _lion(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Lion (Chen et al. 2023): the sign of a momentum; needs a tenth of AdamW's learning rate."""
    return _library("lion").Lion(groups, lr=settings.learning_rate, betas=_betas(settings))


def _muon(groups: Groups, settings: OptimConfig) -> Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices, with orthogonalised momentum; AdamW for all others.

    Its steps are scaled to the size of AdamW's (Liu et al. 2025), so that both use the same learning rate.
    """
    shared = {"lr": settings.learning_rate, "use_adjusted_lr": True}
    rest = {**shared, "betas": _betas(settings), "eps": settings.adam_eps}
    apart = [{**group, **(shared if group[HIDDEN] else rest), "use_muon": group[HIDDEN]} for group in groups]
    return _library("muon").Muon(apart, momentum=settings.muon_momentum)


def _galore(groups: Groups, settings: OptimConfig) -> Optimizer:
    """GaLore (Zhao et al. 2024): AdamW on gradients that are projected to a low rank, for hidden matrices."""
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


def _fusedadam(groups: Groups, settings: OptimConfig) -> Optimizer:
    """NVIDIA apex's FusedAdam if it is installed, otherwise torch's fused AdamW."""
    fused = _apex_fused_adam()
    if fused is None or not torch.cuda.is_available():
        reason = "NVIDIA's apex is not installed" if fused is None else "apex needs a GPU"
        log_once(f"optim fusedadam: {reason}; torch's fused AdamW is used instead.")
        return _adamw(groups, settings)
    return fused(groups, adam_w_mode=True, **adam_arguments(settings))


def adam_arguments(settings: OptimConfig) -> dict[str, Any]:
    """Learning rate, betas and epsilon."""
    return {"lr": settings.learning_rate, "betas": _betas(settings), "eps": settings.adam_eps}


def _betas(settings: OptimConfig) -> tuple[float, float]:
    return settings.adam_beta1, settings.adam_beta2


def _without_decay(groups: Groups) -> Groups:
    """Groups whose weight decay is applied by `_decaying`; the optimiser itself would add it to the gradient."""
    return [{**group, "weight_decay": 0.0, _DECAY: group["weight_decay"]} for group in groups]


def _decaying(optimizer: Optimizer) -> Optimizer:
    """The optimiser with decoupled weight decay before each step."""

    @torch.no_grad()
    def decay(optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            owners = [p for p in group["params"] if p.grad is not None]
            if group[_DECAY] and owners:
                torch._foreach_mul_(owners, 1 - group["lr"] * group[_DECAY])

    optimizer.register_step_pre_hook(decay)
    return optimizer


def _library(name: str) -> Any:
    return require("pytorch_optimizer", f"optim: {name}")


def _plain_projectors(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """GaLore keeps the basis of a projection in an object; a checkpoint holds plain data."""
    for index, slots in state["state"].items():
        projector = slots.get("projector")
        if projector is not None and not isinstance(projector, dict):
            plain = {"ortho_matrix": projector.ortho_matrix, "last_svd_step": projector.last_svd_step}
            state["state"][index] = {**slots, "projector": plain}


def _real_projectors(optimizer: Optimizer, *_: object) -> None:
    """Undo `_plain_projectors` before the first step after a state was loaded."""
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


def _bitsandbytes(name: str) -> Build:
    """An optimiser of bitsandbytes: 8-bit moments (Dettmers et al. 2022), or moments that the GPU pages to the host."""

    def build(groups: Groups, settings: OptimConfig) -> Optimizer:
        library = require("bitsandbytes.optim", f"optim: {settings.optim}", "bitsandbytes")
        if name.startswith("Paged") and not torch.cuda.is_available():
            log_once(f"optim {settings.optim}: there is no GPU memory to page; the moments are ordinary tensors.")
        arguments = adam_arguments(settings)
        if "Lion" in name:
            del arguments["eps"]
        return getattr(library, name)(groups, **arguments)

    return build


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimiser.

    Attributes:
        build: Builds it over groups of parameters.
        state_bytes: Bytes of state for each trained parameter.
        update_copies: Float32 copies of a weight that exist during its update.
        package: The package that it needs; None = torch alone.
    """

    build: Build
    state_bytes: float
    update_copies: int = 0
    package: str | None = None


# Adafactor's rows and columns are negligible beside its matrices, and so are, roughly, GaLore's projected moments and
# bases. Muon has one moment for most matrices. The fused Adam, AdamW and Adagrad make no copies.
OPTIMIZERS: dict[str, OptimizerEntry] = {
    "sgd": OptimizerEntry(_sgd, 0.0),
    "adagrad": OptimizerEntry(_adagrad, 4.0),
    "adadelta": OptimizerEntry(_adadelta, 8.0),
    "adam": OptimizerEntry(_adam, 8.0),
    "adamw": OptimizerEntry(_adamw, 8.0),
    "adafactor": OptimizerEntry(_adafactor, 0.05, update_copies=1),
    "lion": OptimizerEntry(_lion, 4.0, package="pytorch_optimizer"),
    "muon": OptimizerEntry(_muon, 4.5, package="pytorch_optimizer"),
    "galore": OptimizerEntry(_galore, 1.5, package="pytorch_optimizer"),
    "fusedadam": OptimizerEntry(_fusedadam, 8.0),
    "adamw8bit": OptimizerEntry(_bitsandbytes("AdamW8bit"), 2.06, update_copies=5, package="bitsandbytes"),
    "pagedadamw8bit": OptimizerEntry(_bitsandbytes("PagedAdamW8bit"), 2.06, update_copies=5, package="bitsandbytes"),
    "pagedadamw32bit": OptimizerEntry(_bitsandbytes("PagedAdamW32bit"), 8.0, package="bitsandbytes"),
    "lion8bit": OptimizerEntry(_bitsandbytes("Lion8bit"), 1.03, update_copies=5, package="bitsandbytes"),
    "pagedlion8bit": OptimizerEntry(_bitsandbytes("PagedLion8bit"), 1.03, update_copies=5, package="bitsandbytes"),
}
"""The optimisers by the values of `optim`, in its order."""


def check_package(name: str) -> None:
    """Check that the package of the optimiser `name` is installed.

    Raises:
        UnsupportedError: The package is missing.
    """
    package = OPTIMIZERS[name].package
    if package is not None:
        require(package, f"optim: {name}")
