"""Choice of kernels: what is asked for, what is installed, and how another package's kernels are used."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.nn import kernels
from onmt_llm.nn.kernels import attention_kernel, resolve_kernels, use_liger
from onmt_llm.nn.transformer import Transformer

CONFIG = tiny.llama(vocab_size=50, kv_heads=4, qk_norm=True)


def test_what_is_asked_for_and_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    spec: list[Any] = [None]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec[0])
    assert [resolve_kernels(wanted, "cuda") for wanted in ("auto", "torch", "liger")] == ["torch", "torch", "liger"]
    spec[0] = object()
    assert [resolve_kernels(wanted, "cuda") for wanted in ("auto", "torch")] == ["liger", "torch"]
    assert resolve_kernels("auto", "cpu") == "torch"
    with pytest.raises(ConfigError, match="kernels: liger needs a GPU, but the device is cpu"):
        resolve_kernels("liger", "cpu")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(UnsupportedError, match="kernels: liger needs the package 'liger-kernel'"):
        use_liger(Transformer(CONFIG))


def test_kernels_of_the_same_interface_take_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Norm:
        @staticmethod
        def apply(x: Tensor, weight: Tensor, eps: float, offset: float, casting: str, in_place: bool) -> Tensor:
            calls.append("norm")
            return F.rms_norm(x, weight.shape, weight + offset, eps)

    class Product:
        @staticmethod
        def apply(gate: Tensor, up: Tensor) -> Tensor:
            calls.append("product")
            return F.silu(gate) * up

    for name, content in {
        "liger_kernel": {},
        "liger_kernel.ops": {},
        "liger_kernel.ops.rms_norm": {"LigerRMSNormFunction": Norm},
        "liger_kernel.ops.swiglu": {"LigerSiLUMulFunction": Product},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(content, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(0)
    model, ids_BT = Transformer(CONFIG).eval(), torch.randint(1, 40, (2, 7))
    expected, names = model(ids_BT), list(model.state_dict())
    # two norms of each block, those of its queries and keys, its product; and the last norm
    assert use_liger(model) == 2 * 5 + 1
    torch.testing.assert_close(model(ids_BT), expected)
    assert (calls.count("norm"), calls.count("product")) == (2 * 4 + 1, 2)
    assert list(model.state_dict()) == names


def test_the_kernel_of_attention_is_torchs_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    can: dict[str, bool] = {}
    empty, ones = torch.empty, torch.ones
    monkeypatch.setattr(kernels.torch, "empty", lambda *shape, device, **rest: empty(*shape, **rest))
    monkeypatch.setattr(kernels.torch, "ones", lambda *shape, device, **rest: ones(*shape, **rest))
    monkeypatch.setattr(kernels.cuda, "can_use_flash_attention", lambda parameters: can["flash"])
    monkeypatch.setattr(kernels.cuda, "can_use_efficient_attention", lambda parameters: can["efficient"])
    found = []
    for can["flash"], can["efficient"] in ((True, True), (False, True), (False, False)):
        found.append(attention_kernel(CONFIG, torch.bfloat16, dropout=0.0, masked=not can["flash"]).split()[0])
    assert found == ["flash", "memory-efficient", "plain"]
