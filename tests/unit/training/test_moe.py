"""Mixtures of experts in runs: trained, resumed, adapted and quantised by name, expanded, merged and averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onmt_llm.checkpoint.average import average
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.merge import merge
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.training.dry_run.plan import plan
from tiny import GATED_LM

IDS = torch.tensor([[2, 5, 7, 9, 6, 4]])
MOE = {"experts": 4, "experts_per_token": 2, "expert_size": 12, "shared_size": 8, "dense_layers": [0]}
SHAPE = {
    **{**GATED_LM, "decoder_layers": 3, "moe": {**MOE, "balance_loss": 0.5, "router_bias": True}},
    **{"attention_sinks": True, "activation": "clamped_swiglu", "sliding_window": 4, "ffn_bias": True},
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
"""With all that mixtures have: a shared expert as Qwen2-MoE, sinks and biases as gpt-oss."""
DEEPSEEK = {
    **{**GATED_LM, "decoder_layers": 3, "head_dim": 12, "rope": {"rotary_dim": 4}},
    **{"latent": {"kv_rank": 10, "q_rank": 14, "value_dim": 6}},
    "moe": {
        **{**MOE, "scoring": "sigmoid", "selection_bias": True, "groups": 2, "groups_per_token": 1},
        **{"routed_scale": 2.0, "shared_gate": False, "balance_loss": 0.0},
    },
}
LORA = {"lora_layers": ["up_proj", "experts.3.down_proj", "router"], "lora_rank": 2, "lora_alpha": 4.0}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora": LORA, "quantization": {"quant_layers": ["gate_proj", "experts.0.up_proj"], "quant_type": "int8"}},
    "dora": {"lora": {**LORA, "use_dora": True, "lora_init": "pissa"}},
    "twins": {"expansion": {"expand_blocks": [1], "expand_type": "concat"}},
    "stack": {"expansion": {"expand_blocks": [0, 1], "expand_type": "stack"}},
}


def run(task: Any, name: str, *, more: dict[str, Any] | None = None, **sections: Any) -> Path:
    settings = {"save_model": str(task.folder / name), "seed": 7, "train_steps": 4, "save_checkpoint_steps": 2}
    result = task.run(name, run={**settings, **(more or {})}, **{"architecture": SHAPE, **sections})
    assert result.checkpoint is not None
    return result.checkpoint


@pytest.fixture
def base(copy_task: Any) -> str:
    return str(run(copy_task, "base", more={"train_steps": 2}))


@pytest.mark.parametrize(
    "more", [{}, {"use_ckpting": ["block"], "model_dtype": "bf16"}, {"optimizer_in_backward": True}]
)
def test_a_new_model_trains_and_resumes_to_the_bit(copy_task: Any, more: dict[str, Any]) -> None:
    sections = {"logging": {"progress": "none", "report_every": 2}, "optimizer": {"max_grad_norm": 0.0}}
    run(copy_task, "whole", more=more, **sections)
    run(copy_task, "half", more={**more, "train_steps": 2}, **sections)
    run(copy_task, "half", more={**more, "train_from": "auto"}, **sections)
    whole, resumed = copy_task.tensors("whole_step_4"), copy_task.tensors("half_step_4")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    first = copy_task.tensors("whole_step_2")
    assert all(not torch.equal(tensor, first[name]) for name, tensor in whole.items() if ".mlp." in name)
    rows = map(json.loads, (copy_task.folder / "whole_metrics.jsonl").read_text().splitlines())
    for row in (row for row in rows if row["split"] == "train"):
        assert 1.9 < row["balance"] < 4.0
        assert row["loss"] == pytest.approx(row["xent"] + 0.5 * row["balance"], rel=1e-4)


@pytest.mark.parametrize("more", [{}, {"model_dtype": "bf16", "use_ckpting": ["mha"]}])
def test_latent_attention(copy_task: Any, more: dict[str, Any]) -> None:
    run(copy_task, "whole", more=more, architecture=DEEPSEEK)
    run(copy_task, "half", more={**more, "train_steps": 2}, architecture=DEEPSEEK)
    run(copy_task, "half", more={**more, "train_from": "auto"}, architecture=DEEPSEEK)
    first, whole, resumed = (copy_task.tensors(name) for name in ("whole_step_2", "whole_step_4", "half_step_4"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    kept = {name for name, tensor in whole.items() if torch.equal(tensor, first[name])}
    assert kept == {f"decoder.layers.{layer}.mlp.selection.bias" for layer in (1, 2)}
    base = str(copy_task.folder / "whole_step_4")
    lora = {"lora": {**LORA, "lora_layers": ["q_b_proj", "kv_a_proj", "kv_b_proj", "experts.2.up_proj"]}}
    tuned = run(copy_task, "tuned", **lora, more={**more, "train_from": base}, architecture=DEEPSEEK)
    merge(base, tuned, copy_task.folder / "merged")
    with torch.no_grad():
        merged, unmerged, plain = (load_model(path)(IDS) for path in (copy_task.folder / "merged", tuned, base))
    assert (merged - plain).abs().max() > 1e-3
    torch.testing.assert_close(merged, unmerged, atol=0.05 if more else 1e-3, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_fine_tuning(copy_task: Any, base: str, method: str) -> None:
    sections = {**METHODS[method], "loss": {"lambda_balance": 0.1}}
    tuned = run(copy_task, "tuned", **sections, more={"train_from": base})
    run(copy_task, "half", **sections, more={"train_from": base, "train_steps": 2})
    run(copy_task, "half", **sections, more={"train_from": str(copy_task.folder / "half_step_2")})
    whole, resumed = copy_task.tensors("tuned_step_4"), copy_task.tensors("half_step_4")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    if method == "stack":
        assert Checkpoint.open(tuned).config.model.moe.dense_layers == [0, 1]
        return
    merge(base, tuned, copy_task.folder / "merged")
    with torch.no_grad():
        merged, unmerged, plain = (load_model(path)(IDS) for path in (copy_task.folder / "merged", tuned, base))
    assert (merged - plain).abs().max() > 1e-3
    if method != "twins":
        torch.testing.assert_close(merged, unmerged, atol=1e-3, rtol=1e-3)


def test_checkpoints_are_averaged(copy_task: Any) -> None:
    run(copy_task, "base")
    paths = [copy_task.folder / f"base_step_{step}" for step in (2, 4)]
    average(paths, copy_task.folder / "mean")
    name = "decoder.layers.2.mlp.experts.3.up_proj.weight"
    first, second, mean = (Checkpoint.open(path).tensor(name) for path in (*paths, copy_task.folder / "mean"))
    torch.testing.assert_close(mean, (first + second) / 2)


def test_a_plan_counts_all_experts(copy_task: Any, base: str) -> None:
    sections = {"architecture": SHAPE, "run": {"save_model": str(copy_task.folder / "new"), "model_task": "lm"}}
    planned = plan(copy_task.config("new", **sections))
    stored = Checkpoint.open(base)
    assert planned.parameters == sum(torch.Size(stored.shape(name)).numel() for name in stored.model_names())
    assert "4 experts of which 2 compute a token" in planned.report()
