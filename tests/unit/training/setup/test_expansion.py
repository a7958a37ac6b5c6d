"""Block expansion, from the options to a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel

from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.merge import merge
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.nn.block_expansion import add_twins, freeze_all_but, new_blocks, stack_blocks
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.dry_run.plan import plan
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.metrics.mfu import ModelFlops
from onmt_llm.training.metrics.profiler import FlopCounter
from tiny import GATED_LM

SEQ2SEQ = {"encoder_layers": 2, "decoder_layers": 2, "position": "sinusoidal"}
PAIR = {"expand_every": 2}
TALLER = {"expand_every": 2, "expand_type": "stack"}


def settings(task: Any, name: str, **more: Any) -> dict[str, Any]:
    return {"save_model": str(task.folder / name), "seed": 7, "train_steps": 6, "save_checkpoint_steps": 3, **more}


def run(task: Any, name: str, shape: dict[str, Any], *, more: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A run that writes `<name>_step_N`; its last checkpoint. `more` goes into section `run`."""
    result = task.run(name, architecture=shape, run=settings(task, name, **(more or {})), **sections)
    assert result.checkpoint is not None
    return result.checkpoint


@pytest.fixture
def base(copy_task: Any) -> str:
    """A language model to expand."""
    return str(run(copy_task, "base", GATED_LM, more={"train_steps": 3}))


CASES: dict[str, dict[str, Any]] = {
    "concat": {"expansion": {**PAIR, "expand_lerp": 0.25}},
    "stack": {"expansion": TALLER},
    "both stacks": {"expansion": {"expand_blocks": [0], "expand_stacks": ["encoder", "decoder"]}},
    "taller stacks": {"expansion": {**TALLER, "expand_stacks": ["encoder", "decoder"]}},
    "concat, int8": {"expansion": PAIR, "quantization": {"quant_layers": ["up_proj", "q_proj"], "quant_type": "int8"}},
}


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", list(CASES))
def test_runs_resume_to_the_bit_and_leave_the_base_as_it_is(copy_task: Any, case: str, dtype: str) -> None:
    shape, kind = (SEQ2SEQ if "stacks" in case else GATED_LM), CASES[case]["expansion"].get("expand_type", "concat")
    base = run(copy_task, "base", shape, more={"train_steps": 3})
    more = {"model_dtype": dtype, "valid_steps": 3, "use_ckpting": ["ffn"]}
    sections = {**CASES[case], "validation": {"valid_metrics": ["BLEU"]}, "optimizer": {"learning_rate": 0.01}}
    run(copy_task, "whole", shape, **sections, more={**more, "train_from": str(base)})
    auto = {**more, "train_from": "auto", "init_from": str(base)}
    run(copy_task, "half", shape, **sections, more={**auto, "train_steps": 3})
    assert run(copy_task, "half", shape, **sections, more=auto).name == "half_step_6"
    whole, resumed, first = (copy_task.tensors(name) for name in ("whole_step_6", "half_step_6", "whole_step_3"))
    assert whole.keys() == resumed.keys() == first.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    stored = Checkpoint.open(copy_task.folder / "whole_step_6")
    assert stored.config.expansion is not None
    new = tuple(f"{path}." for path in new_blocks(stored.config.expansion.blocks, kind))
    assert stored.is_adapter == (kind == "concat") and any(name.startswith(new) for name in whole)
    for name, tensor in whole.items():
        if tensor.ndim == 2 or not name.startswith(new):
            assert torch.equal(tensor, first[name]) != name.startswith(new)
        assert tensor.dtype == (torch.float32 if name.startswith(new) or dtype == "fp32" else torch.bfloat16)
    assert copy_task.validations("whole")[-1]["xent"] == copy_task.validations("half")[-1]["xent"]


@pytest.mark.parametrize("expansion", [PAIR, TALLER])
def test_the_first_loss_is_that_of_the_base(copy_task: Any, base: str, expansion: dict[str, Any]) -> None:
    still = {"optimizer": {"learning_rate": 1e-12}}
    more = {"train_from": base, "reset_optim": "all", "train_steps": 1, "valid_steps": 1}
    run(copy_task, "plain", GATED_LM, more=more, **still)
    run(copy_task, "expanded", GATED_LM, more=more, expansion=expansion, **still)
    plain, expanded = (copy_task.validations(name)[0]["xent"] for name in ("plain", "expanded"))
    assert expanded == pytest.approx(plain, abs=1e-6)


def test_a_taller_model_is_an_ordinary_one(copy_task: Any, base: str) -> None:
    run(copy_task, "taller", GATED_LM, expansion=TALLER, more={"train_from": base})
    taller = Checkpoint.open(copy_task.folder / "taller_step_6")
    assert taller.config.model.decoder_layers == 3 and load_model(taller.path).config.decoder_layers == 3
    whole = {**GATED_LM, "decoder_layers": 3}
    run(copy_task, "all", whole, more={"train_from": str(taller.path), "reset_optim": "all", "train_steps": 3})
    everything = Checkpoint.open(copy_task.folder / "all_step_3")
    assert everything.config.expansion is None
    name = "decoder.layers.0.mlp.up_proj.weight"
    assert not torch.equal(everything.tensor(name), taller.tensor(name))
    with pytest.raises(CheckpointError, match="must hold a block expansion"):
        merge(base, taller.path, copy_task.folder / "merged")


def test_new_blocks_stay_what_they_are(copy_task: Any, base: str) -> None:
    twins = str(run(copy_task, "twins", GATED_LM, expansion=PAIR, more={"train_from": base}))
    taller = str(run(copy_task, "taller", GATED_LM, expansion=TALLER, more={"train_from": base}))
    again = {"train_from": twins, "train_steps": 9}
    assert run(copy_task, "again", GATED_LM, more=again).name == "again_step_9"
    for path, asked, words in (
        (twins, {"expand_every": 1}, "expand_blocks are decoder.layers.0, decoder.layers.1"),
        (twins, {**PAIR, "expand_lerp": 0.1}, "expand_lerp is 0.1 in the options and 0.5 in the checkpoint"),
        (taller, PAIR | {"expand_type": "concat"}, "expand_type is concat in the options and stack in the checkpoint"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(copy_task, "other", GATED_LM, expansion=asked, more={"train_from": path, "train_steps": 9})
    lora = {"lora": {"lora_layers": ["q_proj"]}, "more": {"train_from": twins, "train_steps": 9}}
    with pytest.raises(ConfigError, match="lora_layers and lora_embedding must be left out"):
        run(copy_task, "other", GATED_LM, **lora)
    adapter = run(copy_task, "adapter", GATED_LM, lora={"lora_layers": ["q_proj"]}, more={"train_from": base})
    with pytest.raises(ConfigError, match="must be left out with an adapter"):
        run(copy_task, "other", GATED_LM, expansion=PAIR, more={"train_from": str(adapter), "train_steps": 9})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too far apart": ({"expansion": {"expand_every": 3}}, "expand_every must be at most 2, .* but is 3"),
    "no such block": ({"expansion": {"expand_blocks": [0, 2]}}, "blocks of the decoder, 0 to 1, but names 2"),
    "no such stack": ({"expansion": {**PAIR, "expand_stacks": ["encoder"]}}, "it has encoder_layers: 0"),
    "quantised and saved": (
        {"expansion": TALLER, "quantization": {"quant_layers": ["q_proj"], "quant_type": "int8"}},
        "quant_layers needs LoRA or expand_type: concat",
    ),
    "frozen": ({"expansion": PAIR, "run": {"freeze_decoder": True}}, "must be off with expanded blocks"),
    "bf16": ({"expansion": PAIR, "run": {"pure_bf16": True, "model_dtype": "bf16"}}, "this run has expanded blocks"),
    "vocabulary": ({"expansion": PAIR, "run": {"update_vocab": True}}, "update_vocab needs training of the whole"),
    "no base": ({"expansion": PAIR, "run": {"train_from": None}}, "must have a trained model to expand"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    copy_task: Any, base: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections, words = REFUSED[case]
    monkeypatch.setattr(Checkpoint, "tensor", None)
    more = {"train_from": base, **sections.pop("run", {})}
    with pytest.raises(ConfigError, match=words):
        plan(copy_task.config("toy", architecture=GATED_LM, run=settings(copy_task, "toy", **more), **sections))


def test_post_norm_models_have_twins_but_do_not_grow(copy_task: Any) -> None:
    post = {**SEQ2SEQ, "norm_position": "post"}
    base = str(run(copy_task, "base", post, more={"train_steps": 3}))
    run(copy_task, "twins", post, expansion=PAIR, more={"train_from": base})
    with pytest.raises(ConfigError, match="stack needs norm_position: pre"):
        run(copy_task, "taller", post, expansion=TALLER, more={"train_from": base})


@pytest.mark.parametrize(
    "options",
    [
        {"expand_every": 2, "expand_blocks": [1]},
        {"expand_blocks": [-1]},
        {"expand_blocks": [1, 1]},
        {"expand_every": 2, "expand_stacks": []},
        {"expand_every": 2, "expand_type": "stack", "expand_lerp": 0.3},
    ],
)
def test_options_that_contradict_each_other(copy_task: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        copy_task.config(expansion=options)


def test_expansion_and_lora_are_not_for_one_run(copy_task: Any) -> None:
    with pytest.raises(ValidationError, match="must be left out with LoRA"):
        copy_task.config(expansion=PAIR, lora={"lora_layers": ["q_proj"]})


@pytest.mark.parametrize("expansion", [PAIR, TALLER])
def test_the_plan_counts_new_blocks(copy_task: Any, base: str, expansion: dict[str, Any]) -> None:
    shape = settings(copy_task, "toy", train_from=base, model_dtype="bf16")
    got = plan(copy_task.config("toy", architecture=GATED_LM, run=shape, expansion=expansion))
    # attention, gated feed-forward and two norms of one block
    block = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    assert (got.trainable, got.new_blocks) == (block, 1)
    checkpoint = Checkpoint.open(base)
    held = sum(checkpoint.tensor(name).numel() for name in checkpoint.names())
    assert got.parameters == held + block
    assert got.memory.held["weights"] == 2 * held + 4 * block and got.memory.backward["gradients"] == 4 * block
    quantised = {"quant_layers": ["up_proj"], "quant_type": "int8"}
    if expansion is PAIR:
        got = plan(copy_task.config("q", architecture=GATED_LM, run=shape, expansion=expansion, quantization=quantised))
        assert got.quant_layers == 2 and got.memory.held["quantised weights"] == 2 * 16 * 24


@pytest.mark.parametrize("blocks", [["decoder.layers.0"], ["decoder.layers.1", "decoder.layers.3"]])
@pytest.mark.parametrize("kind", ["concat", "stack"])
def test_operations_are_those_that_torch_counts(make_batch: Any, kind: Any, blocks: list[str]) -> None:
    model = Transformer(
        ModelConfig(decoder_layers=4, hidden_size=64, heads=4, kv_heads=2, ffn_size=96, ffn_gated=True, vocab_size=48)
    )
    init_weights(model, glorot=True)
    add_twins(model, blocks, 0.5) if kind == "concat" else stack_blocks(model, blocks)
    freeze_all_but(model, new_blocks(blocks, kind))
    batch: Batch = make_batch([[3] * 7, [4] * 7, [5] * 5], [2, 0, 0])
    with FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        batch_loss(model, batch).scaled.backward()
    assert ModelFlops.of(model)(batch) == pytest.approx(float(counter.flops.total()), rel=0.02)
