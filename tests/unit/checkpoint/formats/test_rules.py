"""Weight-name rules: names and tensors both ways, and all faults reported together."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from onmt_llm.checkpoint.formats.ops import (
    Chain,
    Columns,
    GroupedQKV,
    Identity,
    InterleavedRotary,
    Inverse,
    Op,
    Replicated,
    Reshape,
    Shards,
    SplitRows,
)
from onmt_llm.checkpoint.formats.rules import apply, check, check_sizes, per_layer, rule
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import CheckpointError
from onmt_llm.nn.positions import rotary_frequencies, rotate


class Source:
    """Tensors made on demand; counts those whose memory is still held by anyone."""

    def __init__(self, make: dict[str, Callable[[], torch.Tensor]]) -> None:
        self.make = make
        self.memory: list[weakref.ref[np.ndarray]] = []

    def names(self) -> list[str]:
        return list(self.make)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.make[name]().shape)

    def tensor(self, name: str) -> torch.Tensor:
        array = self.make[name]().numpy().copy()
        self.memory.append(weakref.ref(array))
        return torch.from_numpy(array)  # keeps the array until the last view is gone

    def alive(self) -> int:
        return sum(reference() is not None for reference in self.memory)


def source(**tensors: torch.Tensor) -> Source:
    return Source({name: (lambda tensor=tensor: tensor) for name, tensor in tensors.items()})  # type: ignore[misc]


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (Identity(), [(3, 2)]),
        (InterleavedRotary(8), [(24, 5)]),
        (InterleavedRotary(8, 4), [(24, 5)]),
        (InterleavedRotary(8), [(24,)]),
        (GroupedQKV(6, 2, 4), [((6 + 4) * 4, 5)]),
        (GroupedQKV(6, 1, 4), [((6 + 2) * 4,)]),
        (GroupedQKV(6, 6, 4), [(18 * 4, 5)]),
        (SplitRows((4, 2, 2)), [(8, 3)]),
        (Shards(2, 0), [(3, 4), (3, 4)]),
        (Shards(3, 1), [(3, 4)] * 3),
        (Columns(InterleavedRotary(4)), [(3, 8)]),
        (Reshape((6, 1, 2), (6, 2)), [(6, 1, 2)]),
        (Chain((Shards(2, 0), InterleavedRotary(4))), [(8, 3), (8, 3)]),
        (Inverse(Shards(2, 0)), [(8, 3)]),
    ],
)
def test_backward_undoes_forward(op: Op, shapes: list[tuple[int, ...]]) -> None:
    theirs = [torch.randn(shape) for shape in shapes]
    back = op.backward(op.forward(theirs))
    assert len(back) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(theirs, back, strict=True))


def test_copies_take_the_first() -> None:
    assert torch.equal(Replicated(2).forward([torch.ones(2), torch.zeros(2)])[0], torch.ones(2))


def test_interleaved_rotary_makes_neighbours_halves() -> None:
    """Rotating neighbours before the permutation is rotating halves after it."""
    head_dim, hidden = 8, 6
    weight, x = torch.randn(2 * head_dim, hidden), torch.randn(5, hidden)
    angles = torch.outer(torch.arange(5.0), rotary_frequencies(RopeConfig(), head_dim, torch.device("cpu")))
    pairs = torch.view_as_complex((x @ weight.t()).view(5, 2, head_dim // 2, 2))
    neighbours = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(2)
    (permuted,) = InterleavedRotary(head_dim).forward([weight])
    cos, sin = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), dim=-1)
    halves = rotate((x @ permuted.t()).view(1, 5, 2, head_dim), torch.stack((cos, sin), dim=1))[0]
    order = InterleavedRotary(head_dim).forward([torch.arange(2 * head_dim).view(-1, 1)])[0].flatten()
    torch.testing.assert_close(neighbours.flatten(1)[:, order], halves.flatten(1))


def test_lora_b_rows_move_with_the_rows_of_the_weight() -> None:
    op = InterleavedRotary(8)
    weight, a, b = torch.randn(16, 6), torch.randn(2, 6), torch.randn(16, 2)
    torch.testing.assert_close(op.forward([weight + b @ a])[0], op.forward([weight])[0] + op.forward([b])[0] @ a)


def test_grouped_qkv_follows_falcons_layout() -> None:
    rows = torch.arange((4 + 2 * 2) * 3).view(-1, 1)
    q, k, v = GroupedQKV(4, 2, 3).forward([rows])
    assert q.flatten().tolist() == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    assert k.flatten().tolist() == [6, 7, 8, 18, 19, 20] and v.flatten().tolist() == [9, 10, 11, 21, 22, 23]


def test_the_report_lists_everything_at_once() -> None:
    rules = [rule("a", "x"), rule("b", "y"), rule("c", "z"), rule(("q", "r"), "fused", SplitRows((2, 2)))]
    here = source(
        x=torch.zeros(2), z=torch.zeros(3), extra=torch.zeros(1), inv_freq=torch.zeros(1), fused=torch.zeros(5)
    )
    expected = {"a": (2,), "b": (2,), "c": (4,), "d": (1,), "q": (2,), "r": (2,)}
    with pytest.raises(CheckpointError) as caught:
        check(rules, here, expected, ignore=["inv_*"], what="the toy")
    message = str(caught.value)
    assert "the toy" in message and "5 problems" in message and "inv_freq" not in message
    for part in (
        "missing: y",
        "not used: extra [1]",
        "no source: d",
        "c must be [4], but z [3]",
        "fused [5] cannot",
    ):
        assert part in message


def test_a_rule_for_what_the_model_lacks_is_not_asked_for() -> None:
    rules = per_layer([rule("n.{i}.weight", "t.{i}.w"), rule("n.{i}.bias", "t.{i}.b")], 2)
    here = Source({f"t.{i}.w": lambda: torch.ones(1) for i in range(2)})
    assert [name for name, _ in apply(rules, here, {"n.0.weight": (1,), "n.1.weight": (1,)})] == [
        "n.0.weight",
        "n.1.weight",
    ]


def test_streaming_holds_one_rules_tensors() -> None:
    layers = 20
    here = Source({f"t.{i}": lambda: torch.zeros(9, 4) for i in range(layers)})
    rules = per_layer([rule(("q.{i}", "k.{i}", "v.{i}"), "t.{i}", SplitRows((3, 3, 3)))], layers)
    expected = {f"{part}.{i}": (3, 4) for part in "qkv" for i in range(layers)}
    counts = []
    for _name, tensor in apply(rules, here, expected):
        counts.append(here.alive())
        del tensor
    assert len(counts) == 3 * layers and max(counts) == 1


FEW_TENSORS = source(a=torch.empty(32, 24), b=torch.empty(32), c=torch.empty(()))


def test_what_can_fit_passes() -> None:
    check_sizes(tiny.config(vocab_size=32), FEW_TENSORS, Path("m"))
    check_sizes(tiny.config(vocab_size=10**6), FEW_TENSORS, Path("m"), rows=False)
    check_sizes(
        tiny.config(moe={"experts": 4}), source(a=torch.empty(4, 24, 2), b=torch.empty(4, 2, 24)), Path("m"), rows=False
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"decoder_layers": 1000}, "decoder_layers 1000, while there are only 3 tensors"),
        ({"encoder_layers": 2}, "encoder_layers 2 and decoder_layers 2"),
        ({"moe": {"experts": 2}}, "moe.experts 2, while there are only 3 tensors"),
        ({"vocab_size": 33}, "vocab_size 33, while no tensor is longer than 32"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_allocated(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=f"The configuration of m must fit its weights.*{problem}"):
        check_sizes(tiny.config(**changes), FEW_TENSORS, Path("m"))


def test_no_tensors_at_all_are_refused() -> None:
    with pytest.raises(CheckpointError):
        check_sizes(tiny.config(), source(), Path("m"))


SHAPES = """
import sys, torch
from onmt_llm.checkpoint.formats.ops import GroupedQKV, InterleavedRotary, Shards, SplitRows
wide, long = torch.empty(48, 5, device="meta"), torch.empty(24, 5, device="meta")
assert InterleavedRotary(8, 4).backward([wide])[0].shape == (48, 5)
assert Shards(2, 1).forward([wide, wide])[0].shape == (48, 10)
assert SplitRows((48, 24)).backward([wide, long])[0].shape == (72, 5)
assert GroupedQKV(4, 1, 8).backward([torch.empty(32, 5, device="meta"), *[torch.empty(8, 5, device="meta")] * 2])
sys.exit("torch._dynamo" in sys.modules)
"""


def test_shapes_are_known_without_importing_the_compiler() -> None:
    assert subprocess.run([sys.executable, "-c", SHAPES]).returncode == 0


def test_shapes_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"only dimension 0 may differ in \(4, 5\), \(4, 6\)"):
        Shards(2, 0).forward([torch.empty(4, 5, device="meta"), torch.empty(4, 6, device="meta")])
