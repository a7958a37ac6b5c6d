"""AdamW over bf16 weights: updates too small for bf16 add up, and its state is restored exactly."""

from __future__ import annotations

import pytest
import torch

from onmt_llm.training.optim.kahan import KahanAdamW

STEPS = 200


def train(parameter: torch.Tensor, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        parameter.grad = (1 + 0.3 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_many_small_updates_arrive(weight_decay: float) -> None:
    settings = {"lr": 1e-4, "weight_decay": weight_decay}  # below 1/256 of the weight
    start = torch.linspace(1, 2, 64)
    exact, rounded = start.clone(), start.bfloat16()
    summed = rounded.clone()
    train(exact, torch.optim.AdamW([exact], **settings), STEPS)
    train(rounded, torch.optim.AdamW([rounded], **settings), STEPS)
    optimizer = KahanAdamW([summed], **settings)
    train(summed, optimizer, STEPS)
    whole = summed.float() + optimizer.state[summed]["rest"].float()
    assert (whole - exact).abs().max() < 5e-3 < (rounded.float() - exact).abs().max()


def test_a_parameter_without_gradient_stays() -> None:
    parameter = torch.ones(3, dtype=torch.bfloat16)
    optimizer = KahanAdamW([parameter], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(parameter, torch.ones_like(parameter)) and not optimizer.state


def test_a_restored_state_continues_to_the_bit() -> None:
    whole, half = torch.ones(16, dtype=torch.bfloat16), torch.ones(16, dtype=torch.bfloat16)
    one, two = KahanAdamW([whole], lr=1e-3), KahanAdamW([half], lr=1e-3)
    train(whole, one, 5)
    train(half, two, 5)
    restored = KahanAdamW([half], lr=1e-3)
    restored.load_state_dict(two.state_dict())
    assert restored.state[half]["exp_avg_sq"].dtype == torch.float32
    train(whole, one, 5)
    train(half, restored, 5)
    assert torch.equal(whole, half)
    assert all(torch.equal(one.state[whole][name], restored.state[half][name]) for name in ("exp_avg", "rest"))
