"""Training on a GPU equals training on a CPU, and converges in half precision."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from gpu_runs import GpuRuns

# `cpu` runs the tests where there is no card, to try the tests themselves.
DEVICE = os.environ.get("ONMT_LLM_TEST_DEVICE", "cuda")
ON_CPU = DEVICE == "cpu"
LORA: dict[str, Any] = {"lora_layers": ["q_proj", "v_proj", "down_proj"], "lora_rank": 4, "lora_alpha": 8}
FFN = ["gate_proj", "up_proj"]
WHOLE: dict[str, dict[str, Any]] = {
    "packed documents": {},
    "wrapped": {"packing": "wrap", "isolate_documents": False},
    "padded": {"packing": "off", "batch_type": "tokens", "batch_size": 512},
    "fused": {"optim": "fusedadam"},
    "adagrad": {"optim": "adagrad"},
    "recomputed": {"use_ckpting": ["block"]},
    "offloaded": {"offload_activations": True},
    "liger": {"kernels": "liger"},
    "compiled": {"compile_blocks": True},
}
ADAPTED: dict[str, dict[str, Any]] = {
    "lora": {},
    "int8": {"quant_layers": FFN, "quant_type": "int8", "quant_compute": "float"},
    "8 bits": {"quant_layers": FFN, "quant_type": "bnb_8bit"},
    "4 bits": {"quant_layers": FFN, "quant_type": "bnb_NF4"},
}
NEEDS = {"liger": "liger_kernel", "8 bits": "bitsandbytes", "4 bits": "bitsandbytes"}
GPU_ONLY = {"liger": ["kernels"], "offloaded": ["offload_activations"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> GpuRuns:
    return GpuRuns(Path(tmp_path_factory.mktemp("gpu")), DEVICE)


def check_package(variant: str) -> None:
    package = NEEDS.get(variant)
    if package and find_spec(package) is None:
        pytest.skip(f"{variant} needs the package {package}")


def on_cpu(variant: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the same computation on a CPU."""
    return {key: value for key, value in options.items() if key not in GPU_ONLY.get(variant, ())}


@pytest.mark.parametrize("variant", WHOLE)
def test_losses_are_those_of_a_cpu(runs: GpuRuns, variant: str) -> None:
    check_package(variant)
    options = WHOLE[variant]
    twin = on_cpu(variant, options) | ({"compile_blocks": False} if "compile_blocks" in options else {})
    wanted = runs.losses(f"cpu {variant}", "cpu", **twin)
    got = runs.losses(f"gpu {variant}", DEVICE, **(on_cpu(variant, options) if ON_CPU else options))
    assert got == pytest.approx(wanted, rel=2e-3)
    assert wanted[-1] < 0.8 * wanted[0]


@pytest.mark.parametrize("variant", ADAPTED)
def test_adapters_learn_as_on_a_cpu(runs: GpuRuns, variant: str) -> None:
    check_package(variant)
    options = {**LORA, **ADAPTED[variant], "train_from": runs.base(), "reset_optim": "all"}
    wanted = runs.losses(f"cpu {variant}", "cpu", **options)
    got = runs.losses(f"gpu {variant}", DEVICE, **options)
    # bitsandbytes multiplies in other formats on a CPU
    assert got == pytest.approx(wanted, rel=5e-2 if variant in NEEDS else 2e-3)


@pytest.mark.parametrize(
    "options",
    [{"model_dtype": "bf16"}, {"model_dtype": "bf16", "pure_bf16": True}, {"model_dtype": "fp16"}],
    ids=["bf16", "pure bf16", "fp16"],
)
def test_half_precision_converges(runs: GpuRuns, options: dict[str, Any]) -> None:
    wanted = runs.losses("full precision", "cpu", train_steps=60)
    got = runs.losses("half precision " + " ".join(map(str, options.values())), DEVICE, train_steps=60, **options)
    assert wanted[-1] < 0.5 * wanted[0]
    assert got[-1] == pytest.approx(wanted[-1], rel=0.1)
