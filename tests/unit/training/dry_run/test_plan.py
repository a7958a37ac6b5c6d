"""Memory estimates: a narrow copy needs memory in proportion to the model; the plan lists the switches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from onmt_llm.config.checkpoint import AdapterSpec
from onmt_llm.training.dry_run import estimate
from onmt_llm.training.dry_run.activations import ActivationEstimate, BatchShape
from onmt_llm.training.dry_run.plan import plan
from onmt_llm.training.optim.precision import choose_precision
from onmt_llm.training.setup.layers import LayerPlan
from options import train_config

NAMES = ["q_proj", "down_proj"]
WIDE = {"vocab_size": 50, "hidden_size": 128, "ffn_size": 192}
MOE = {"moe": {"experts": 5, "expert_size": 96, "shared_size": 64, "dense_layers": [0]}}
LATENT = {
    **{"kv_heads": None, "head_dim": 48, "rope": {"rotary_dim": 16}},
    "latent": {"kv_rank": 60, "q_rank": 80, "value_dim": 32},
}
SINKS = {"attention_sinks": True, "sliding_window": 90, "layer_types": ["sliding_attention", "full_attention"]}
ADAPTER = AdapterSpec(rank=2, alpha=4.0, dropout=0.1, layers=NAMES, embedding=False, base="", base_fingerprint="")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("shape", "layers", "run"),
    [
        (tiny.LLAMA, LayerPlan(), {}),
        (tiny.LLAMA, LayerPlan(ADAPTER, quantised=tuple(NAMES), quant_type="int8"), {"use_ckpting": ["lora"]}),
        (tiny.LLAMA, LayerPlan(ADAPTER), {"use_ckpting": ["mha"], "attention_dropout": [0.1]}),
        ({**tiny.LLAMA, **MOE}, LayerPlan(), {}),
        (
            {**tiny.LLAMA, **MOE},
            LayerPlan(ADAPTER, quantised=tuple(NAMES), quant_type="int8"),
            {"use_ckpting": ["mha"]},
        ),
        ({**tiny.LLAMA, **MOE, **LATENT}, LayerPlan(), {}),
        ({**tiny.LLAMA, **SINKS, "activation": "clamped_swiglu"}, LayerPlan(), {}),
        ({"encoder_layers": 1}, LayerPlan(), {"dropout": [0.1], "attention_dropout": [0.1]}),
        ({"encoder_layers": 1, "norm_position": "post", "position": "shaw", "relative_positions": 2}, LayerPlan(), {}),
    ],
)
def test_a_narrow_copy_tells_what_the_whole_keeps(
    shape: dict[str, Any], layers: LayerPlan, run: dict[str, Any], dtype: Any, packed: bool
) -> None:
    config = tiny.config(**WIDE, **shape)
    parts = run.get("use_ckpting", [])
    settings = train_config({"run": {"dropout": [0.0], "attention_dropout": [0.0], **run}})
    precision = choose_precision(dtype, lora=layers.lora is not None, loss_scale=0.0, device=torch.device("meta"))
    batch = BatchShape(3, 3, 200, 100 if config.encoder_layers else 0, packed)
    kept = ActivationEstimate(config, settings, layers, precision, batch)
    whole = kept._count(config.size_per_head, batch.tgt_length, parts)
    # beside activations: weights that were cast for autocast
    cast = kept._count(config.size_per_head, 4, parts) if precision.autocast else 0
    assert kept.with_recomputed(parts) == pytest.approx(3 * (whole - cast), rel=0.05)


def test_what_is_recomputed_is_there_a_part_at_a_time() -> None:
    config = tiny.llama(**WIDE, decoder_layers=8)
    precision = choose_precision("fp32", lora=False, loss_scale=0.0, device=torch.device("meta"))

    def at_most(*parts: Any) -> int:
        settings = train_config({"run": {"use_ckpting": parts}})
        return ActivationEstimate(config, settings, LayerPlan(), precision, BatchShape(1, 1, 64)).peak_bytes()

    assert at_most() > at_most("mha") > at_most("mha", "ffn") > at_most("block", "mha", "ffn")
    assert at_most() / 8 < at_most("block") < at_most() / 2


def test_updates_in_the_backward_pass_hold_no_more_than_the_largest_gradient(copy_task: Any) -> None:
    run = copy_task.config().run.model_dump(exclude_unset=True)
    after, inside = (
        plan(copy_task.config(run={**run, "optimizer_in_backward": inside}, optimizer={"max_grad_norm": 0.0}))
        for inside in (False, True)
    )
    assert inside.memory.backward["gradients"] < after.memory.backward["gradients"] == 4 * after.trainable
    assert inside.memory.held == after.memory.held and inside.memory.peak <= after.memory.peak


def test_processes_hold_parts_of_what_one_holds(copy_task: Any) -> None:
    def memory(**devices: Any) -> Any:
        return plan(copy_task.config(devices={"device": "cpu", "world_size": 8, **devices})).memory

    whole, eighth, pair = memory(), memory(shard="full"), memory(shard="full", shard_size=2)
    for name in ("weights", "optimiser"):
        assert eighth.held[name] == pytest.approx(whole.held[name] / 8, rel=0.25)  # some rows are not divisible
        assert pair.held[name] == pytest.approx(whole.held[name] / 2, rel=0.05)
    halves = memory(tensor_parallel=2)
    assert whole.held["weights"] / 2 < halves.held["weights"] < whole.held["weights"]
    assert halves.forward["activations"] < whole.forward["activations"]


def test_auto_shards_what_does_not_fit(copy_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = copy_task.config(devices={"device": "cpu", "world_size": 2, "shard": "auto"})
    for room, parts in ((1, 2), (1 << 40, 1), (None, 1)):
        monkeypatch.setattr(estimate, "memory_of", lambda device, *, processes, room=room: room)
        assert plan(config).sharding.shards == parts
