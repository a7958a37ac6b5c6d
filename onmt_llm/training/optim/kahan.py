"""AdamW for bf16 weights, whose rounding errors it keeps (Kahan summation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class KahanAdamW(Optimizer):
    """AdamW over bf16 weights, each with its rounding error as a second bf16 number (Kahan summation).

    bf16 has 8 bits of precision: an update below 1/256 of its weight would be rounded away. Weight and rounding error
    together have 16 bits, and the update is computed in float32 on their sum. The first moment is bf16. The second is
    float32, since it changes by 1 - beta2 at a time, which bf16 would round away too. That is 10 bytes per parameter
    including the weight, instead of 12 for float32 weights and moments, and 2 bytes per gradient instead of 4.

    Args:
        params: Parameters, or groups of parameters.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad.float(), group)

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["rest"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        mean = state["exp_avg"].float().lerp_(grad, 1 - beta1)
        state["exp_avg"].copy_(mean)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        size = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        whole = parameter.float().add_(state["rest"])
        whole.mul_(1 - group["lr"] * group["weight_decay"])
        whole.addcdiv_(mean, size, value=-group["lr"] / (1 - beta1 ** state["step"]))
        parameter.copy_(whole)
        state["rest"].copy_(whole.sub_(parameter))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state with each tensor in its own type; torch would convert all of them to the parameter's type."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, slots in state_dict["state"].items():
            own = self.state[parameters[index]]
            for name, value in slots.items():
                if isinstance(value, Tensor):
                    own[name] = value.to(parameters[index].device, copy=True)
