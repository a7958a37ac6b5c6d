"""Compiled blocks: the same gradients for every shape, under the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from onmt_llm.errors import UnsupportedError
from onmt_llm.nn.activations.recompute import set_recomputed
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora
from onmt_llm.nn.quantized import quantize
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.setup import performance
from onmt_llm.training.setup.performance import compile_blocks, log_compile_time

CPU = torch.device("cpu")
NAMES = ["q_proj", "down_proj"]


def gradients(model: Transformer, shape: tuple[int, int], **inputs: Any) -> list[Tensor]:
    model.zero_grad()
    ids_BT = torch.randint(1, 20, shape, generator=torch.Generator().manual_seed(1))
    model(ids_BT, **inputs).float().logsumexp(-1).sum().backward()
    return [p.grad.float() for p in model.parameters() if p.grad is not None]


def prepared(model: Transformer, kind: str) -> Transformer:
    if kind in ("int8", "bf16"):
        model.bfloat16() if kind == "bf16" else model
        quantize(model, NAMES, "int8")
        add_lora(model, NAMES, rank=2, alpha=4.0)
        freeze_all_but_lora(model)
    set_recomputed(model, {"parts": {"mha", "ffn"}, "blocks": {"block"}}.get(kind, set()))
    return model.train()


def check(model: Transformer, backend: str, bound: float) -> None:
    doc_BT = torch.tensor([[1, 1, 1, 2, 2, 2, 0]] * 2)
    calls: list[tuple[tuple[int, int], dict[str, Any]]] = [((2, 7), {}), ((3, 11), {}), ((2, 7), {"doc_BT": doc_BT})]
    expected = [gradients(model, shape, **inputs) for shape, inputs in calls]
    names = list(model.state_dict())
    compile_blocks(model, CPU, backend=backend)
    assert list(model.state_dict()) == names
    for (shape, inputs), gradient in zip(calls, expected, strict=True):
        for found, wanted in zip(gradients(model, shape, **inputs), gradient, strict=True):
            torch.testing.assert_close(found, wanted, rtol=bound, atol=bound * float(wanted.abs().max()))


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["full", "int8", "bf16", "parts", "blocks"])
def test_compiled_code_has_the_gradients_of_the_blocks(tiny_model: Transformer, kind: str) -> None:
    check(prepared(tiny_model, kind), "inductor", 3e-2 if kind == "bf16" else 1e-5)


def test_batches_of_all_sizes_share_one_graph(tiny_model: Transformer) -> None:
    shapes = [(2, 7), (3, 9), (5, 4)]
    expected = [gradients(tiny_model, shape) for shape in shapes]
    compile_blocks(tiny_model.train(), CPU, backend="eager")
    torch._dynamo.utils.counters.clear()
    for shape, wanted in zip(shapes, expected, strict=True):
        torch.testing.assert_close(gradients(tiny_model, shape), wanted, rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_without_a_compiler_a_sentence_says_so(tiny_model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UnsupportedError, match=r"needs a C\+\+ compiler .*: No working C\+\+ compiler found"):
        compile_blocks(tiny_model, CPU)


def test_what_compilation_takes_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(performance.logger, "info", lambda text, *values: lines.append(text % values))
    batches: Any = ["a", "b", "c"]
    assert list(log_compile_time(batches)) == batches
    assert len(lines) == 1 and "the first micro-batch took" in lines[0]
