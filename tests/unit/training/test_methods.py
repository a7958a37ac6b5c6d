"""Fine-tuning methods, from the options to a resumed run and a merged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.merge import merge_lora
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import ConfigError
from tiny import GATED_LM

IDS = torch.tensor([[2, 5, 7, 9, 6, 4]])


def run(task: Any, name: str, *, more: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A run of a language model that writes `<name>_step_N`; its last checkpoint. `more` goes into section `run`."""
    settings = {"save_model": str(task.folder / name), "seed": 7, "train_steps": 6, "save_checkpoint_steps": 3}
    result = task.run(name, architecture=GATED_LM, run={**settings, **(more or {})}, **sections)
    assert result.checkpoint is not None
    return result.checkpoint


@pytest.fixture
def base(copy_task: Any) -> str:
    """A language model to fine-tune."""
    return str(run(copy_task, "base", more={"train_steps": 2}))


VARIANTS: dict[str, dict[str, Any]] = {
    "rslora and patterns": {"use_rslora": True, "lora_rank_pattern": {"w_2": 3}, "lora_alpha_pattern": {"w_2": 1.0}},
    "dora": {"use_dora": True},
    "pissa": {"lora_init": "pissa"},
    "loftq": {"lora_init": "loftq", "lora_init_iter": 2, "use_dora": True},
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_variants_of_lora_train_resume_and_merge(copy_task: Any, base: str, variant: str) -> None:
    lora = {"lora_layers": ["linear_query", "w_2"], "lora_rank": 2, "lora_alpha": 4.0, **VARIANTS[variant]}
    sections = {"lora": lora, "optimizer": {"learning_rate": 0.01, "loraplus_lr_ratio": 4.0}}
    if variant == "loftq":
        sections["quantization"] = {"quant_layers": ["down_proj"], "quant_type": "int8"}
    run(copy_task, "whole", **sections, more={"train_from": base})
    run(copy_task, "half", **sections, more={"train_from": base, "train_steps": 3})
    half = str(copy_task.folder / "half_step_3")
    run(copy_task, "half", more={"train_from": half})
    whole, resumed = copy_task.tensors("whole_step_6"), copy_task.tensors("half_step_6")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    first = copy_task.tensors("whole_step_3")
    assert all(not torch.equal(whole[n], first[n]) for n in whole if n.endswith(("lora_a", "lora_b", "magnitude")))
    adapter = copy_task.folder / "whole_step_6"
    merge_lora(base, adapter, copy_task.folder / "merged")
    with torch.no_grad():
        merged, unmerged, plain = (load_model(path)(IDS) for path in (copy_task.folder / "merged", adapter, base))
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
    assert (merged - plain).abs().max() > 1e-3


def test_a_variant_stays_what_it_is(copy_task: Any, base: str) -> None:
    lora = {"lora_layers": ["q_proj"], "use_rslora": True}
    run(copy_task, "first", lora=lora, more={"train_from": base})
    spec = Checkpoint.open(copy_task.folder / "first_step_6").config.adapter
    assert spec is not None and spec.rslora and not spec.dora
    adapter = str(copy_task.folder / "first_step_6")
    with pytest.raises(ConfigError, match="use_rslora is False in the options and True in the adapter"):
        run(copy_task, "second", lora={"use_rslora": False}, more={"train_from": adapter})
    loftq = {"lora_layers": ["q_proj"], "lora_init": "loftq"}
    with pytest.raises(ConfigError, match="loftq needs quant_layers"):
        run(copy_task, "third", lora=loftq, more={"train_from": base})


@pytest.mark.parametrize("optim", ["adagrad", "adadelta", "lion", "muon", "galore", "lion8bit", "pure bf16"])
def test_every_optimiser_resumes_to_the_bit(copy_task: Any, base: str, optim: str) -> None:
    if optim in ("lion", "muon", "galore"):
        pytest.importorskip("pytorch_optimizer")
    if optim == "lion8bit":
        pytest.importorskip("bitsandbytes")
    settings: dict[str, Any] = {"optim": optim, "learning_rate": 0.01, "galore_rank": 4, "galore_gap": 4}
    more: dict[str, Any] = {"neftune_noise_alpha": 5.0}
    if optim == "pure bf16":
        settings["optim"] = "adamw"
        more.update({"pure_bf16": True, "model_dtype": "bf16"})
    run(copy_task, "whole", optimizer=settings, more={**more, "train_from": base, "reset_optim": "all"})
    half = {**more, "train_from": base, "reset_optim": "all", "train_steps": 3}
    run(copy_task, "half", optimizer=settings, more=half)
    run(copy_task, "half", more={**more, "train_from": str(copy_task.folder / "half_step_3")})
    whole, resumed = copy_task.tensors("whole_step_6"), copy_task.tensors("half_step_6")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    kind = torch.bfloat16 if optim == "pure bf16" else torch.float32
    assert {tensor.dtype for tensor in whole.values()} == {kind}
    assert any(not torch.equal(tensor, copy_task.tensors("whole_step_3")[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("optim", ["adamw8bit", "pagedadamw8bit", "pagedadamw32bit", "lion8bit", "pagedlion8bit"])
def test_moments_of_eight_bits_resume_to_the_bit(copy_task: Any, optim: str) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes keeps 32 bits where a matrix has fewer than 4096 elements
    shape = {**GATED_LM, "hidden_size": 32, "ffn_size": 128}

    def go(name: str, steps: int, **more: Any) -> None:
        settings = {
            "save_model": str(copy_task.folder / name),
            "seed": 7,
            "train_steps": steps,
            "save_checkpoint_steps": 3,
        }
        optimizer = {"optim": optim, "learning_rate": 0.01}
        copy_task.run(name, architecture=shape, optimizer=optimizer, run={**settings, **more})

    go("whole", 6)
    go("half", 3)
    go("half", 6, train_from=str(copy_task.folder / "half_step_3"))
    whole, half = (copy_task.folder / f"{name}_step_6" for name in ("whole", "half"))
    for file in ("model.safetensors", "train_state/optimizer.safetensors"):
        assert (whole / file).read_bytes() == (half / file).read_bytes()
    kinds = {
        tensor.dtype
        for name, tensor in load_file(whole / "train_state/optimizer.safetensors").items()
        if "up_proj.weight/" in name and name.endswith("/state1")
    }
    assert kinds == {torch.uint8 if "8bit" in optim else torch.float32}


def test_pure_bf16_is_for_whole_models(copy_task: Any, base: str) -> None:
    more = {"train_from": base, "pure_bf16": True, "model_dtype": "bf16"}
    with pytest.raises(ConfigError, match="pure_bf16 needs full training in model_dtype: bf16, but this run has L"):
        run(copy_task, "a", lora={"lora_layers": ["q_proj"]}, more=more)
    with pytest.raises(ConfigError, match="but this run has model_dtype: fp32"):
        run(copy_task, "b", more={**more, "model_dtype": "fp32"})
