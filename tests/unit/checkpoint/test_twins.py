"""Checkpoints of expanded blocks: the stored twins rebuild exactly the same pairs on the same base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.average import average
from onmt_llm.checkpoint.export_guard import open_for_export
from onmt_llm.checkpoint.load import Placement, build_model, load_model
from onmt_llm.checkpoint.merge import concat_lora, merge
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.cli.checkpoint import main as checkpoint_main
from onmt_llm.cli.lora import main as lora_main
from onmt_llm.config.checkpoint import ExpansionSpec
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import CheckpointError
from onmt_llm.generate.open import open_engine
from onmt_llm.nn.block_expansion import twin_state, twins
from onmt_llm.nn.quantized import Int8Linear
from onmt_llm.nn.transformer import Transformer
from onmt_llm.releasing import release

IDS = torch.tensor([[1, 5, 7, 9, 3]])
BLOCK = "decoder.layers.1"
Make = Callable[..., Checkpoint]


def spec(base: Checkpoint, lerp: float = 0.25) -> ExpansionSpec:
    identity = {"base": str(base.path), "base_fingerprint": base.fingerprint}
    return ExpansionSpec(type="concat", blocks=[BLOCK], lerp=lerp, **identity)


def save(model: Transformer, base: Checkpoint, expansion: ExpansionSpec, path: Path) -> Checkpoint:
    with CheckpointWriter(path, base.config.model_copy(update={"expansion": expansion})) as writer:
        for name, tensor in twin_state(model).items():
            writer.add(name, tensor)
        writer.add_file(base.path / "vocab.txt", "vocab.txt")
    return Checkpoint.open(path)


@torch.no_grad()
def trained(base: Checkpoint, path: Path, lerp: float = 0.25) -> tuple[Transformer, Checkpoint]:
    """A model whose twins have moved, and their checkpoint."""
    model = build_model(base, addition=spec(base, lerp)).eval()
    for tensor in twin_state(model).values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2)))
    return model, save(model, base, spec(base, lerp), path)


@torch.no_grad()
def test_what_is_stored_makes_the_same_pairs(tmp_path: Path, make_model: Make) -> None:
    base = make_model()
    assert torch.equal(build_model(base, addition=spec(base)).eval()(IDS), load_model(base.path)(IDS))
    model, stored = trained(base, tmp_path / "twins")
    assert stored.is_adapter and all(name.startswith(f"{BLOCK}.twin.") for name in stored.names())
    again = load_model(stored.path)
    assert torch.equal(again(IDS), model(IDS)) and (model(IDS) - load_model(base.path)(IDS)).abs().max() > 0.1
    assert {p.dtype for p in load_model(stored.path, dtype="bf16").parameters()} == {torch.bfloat16}
    engine = open_engine(str(stored.path))
    assert len(list(engine.generate([["t3", "t5"]], GenerationConfig(max_length=3)))) == 1


@torch.no_grad()
def test_the_twins_of_quantised_blocks_begin_with_the_weights_as_stored(make_model: Make) -> None:
    base = make_model()
    model = build_model(
        base,
        Placement(
            "bf16",
            quant_layers=["up_proj", f"{BLOCK}.mlp.down_proj"],
            quant_type="int8",
            float32_modules=[f"{BLOCK}.twin"],
        ),
        addition=spec(base),
    )
    quantised = [path for path, module in model.named_modules() if isinstance(module, Int8Linear)]
    assert quantised == [
        "decoder.layers.0.mlp.up_proj",
        f"{BLOCK}.base.mlp.up_proj",
        f"{BLOCK}.base.mlp.down_proj",
    ]
    for name, tensor in twin_state(model).items():
        assert torch.equal(tensor, base.tensor(name.replace(".twin.", ".")))
    assert twins(model)[BLOCK].base.self_attn.q_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("lerp", [0.0, 0.25, 1.0])
def test_merged_weights_are_the_mean(
    tmp_path: Path, make_model: Make, lerp: float, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_model()
    _, stored = trained(base, tmp_path / "twins", lerp)
    output = tmp_path / "merged"
    arguments = ["-base_model", str(base.path), "-lora_weights", str(stored.path), "-output", str(output)]
    assert lora_main(["-action", "merge", *arguments]) == 0
    assert "approximates" in capsys.readouterr().err
    merged = Checkpoint.open(output)
    assert merged.config.addition is None and merged.config.model == base.config.model
    assert [file.name for file in merged.files()] == ["vocab.txt"]
    moved = 0
    for name, tensor in merged.tensors():
        wanted = base.tensor(name)
        if name.startswith(BLOCK):
            twin = stored.tensor(name.replace(BLOCK, f"{BLOCK}.twin"))
            wanted = wanted if lerp == 0 else twin if lerp == 1 else (1 - lerp) * wanted + lerp * twin
            moved += not torch.equal(tensor, base.tensor(name))
        torch.testing.assert_close(tensor, wanted, atol=0.0 if lerp in (0, 1) else 1e-6, rtol=0.0)
    assert moved == (0 if lerp == 0 else len(stored.names()))
    if lerp in (0, 1):
        torch.testing.assert_close(load_model(output)(IDS), load_model(stored.path)(IDS), atol=1e-5, rtol=1e-5)


def test_another_base_is_refused(tmp_path: Path, make_model: Make) -> None:
    base, other = make_model(), make_model("other", seed=3)
    _, stored = trained(base, tmp_path / "twins")
    with pytest.raises(CheckpointError, match=r"block expansion .* was trained on"):
        merge(other.path, stored.path, tmp_path / "merged")
    arguments = ["-base_model", str(other.path), "-lora_weights", str(stored.path), "-output", str(tmp_path / "merged")]
    assert lora_main(["-action", "merge", *arguments]) == 4
    with pytest.raises(CheckpointError, match="base must be a whole model"):
        merge(stored.path, stored.path, tmp_path / "merged")
    base.path.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"base of the block expansion .* no checkpoint is there"):
        load_model(stored.path)


def test_twins_that_do_not_fit_are_listed(tmp_path: Path, make_model: Make) -> None:
    base = make_model()
    model, _ = trained(base, tmp_path / "twins")
    wrong = spec(base).model_copy(update={"blocks": ["decoder.layers.0"]})
    stored = save(model, base, wrong, tmp_path / "wrong")
    for action in (lambda: load_model(stored.path), lambda: merge(base.path, stored.path, tmp_path / "merged")):
        with pytest.raises(CheckpointError, match=r"layers.0.twin.* is missing.*layers.1.twin.* belongs to no block"):
            action()


def test_what_wants_a_whole_model_refuses_twins_with_the_command(
    tmp_path: Path, make_model: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_model()
    _, stored = trained(base, tmp_path / "twins")
    with pytest.raises(CheckpointError, match="unmerged block expansion") as caught:
        release(stored.path, tmp_path / "out")
    assert f"--action merge --base_model {base.path} --lora_weights {stored.path}" in str(caught.value.hint)
    for refuses in (
        lambda: build_model(stored),
        lambda: open_for_export(stored),
        lambda: average([stored.path], tmp_path / "mean"),
        lambda: concat_lora(base.path, stored.path, tmp_path / "both"),
    ):
        with pytest.raises(CheckpointError, match="block expansion") as caught:
            refuses()
        assert "merge" in str(caught.value.hint)
    assert checkpoint_main(["info", "-model", str(stored.path)]) == 0
    assert f"concat at {BLOCK}, lerp 0.25" in capsys.readouterr().out


def test_a_model_with_an_adapter_is_not_expanded(tmp_path: Path, make_model: Make, make_adapter: Make) -> None:
    base = make_model()
    both = concat_lora(base.path, make_adapter(base).path, tmp_path / "both")
    with pytest.raises(CheckpointError, match="Only a model without an adapter can be expanded"):
        build_model(Checkpoint.open(both), addition=spec(base))
