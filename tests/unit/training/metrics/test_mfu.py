"""FLOPs of a batch against torch's own counter, and the reported utilisation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from onmt_llm.config.model import ModelConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.losses.batch_loss import batch_loss
from onmt_llm.training.metrics.mfu import HardwareMonitor, ModelFlops, matmul_peak
from onmt_llm.training.metrics.profiler import FlopCounter

MakeBatch = Callable[[Sequence[Sequence[int]], Sequence[int]], Batch]
SHAPE: dict[str, Any] = {"hidden_size": 64, "heads": 4, "ffn_size": 96, "vocab_size": 48}


def counted(model: Transformer, batch: Batch) -> float:
    """What torch counts in a forward and a backward pass."""
    with FlopCounter() as counter, sdpa_kernel(SDPBackend.MATH):
        batch_loss(model, batch).scaled.backward()
    return float(counter.flops.total())


@pytest.fixture
def batch(make_batch: MakeBatch) -> Batch:
    return make_batch([[3] * 7, [4] * 7, [5] * 5], [2, 0, 0])


def built(**shape: Any) -> Transformer:
    model = Transformer(ModelConfig(**{**SHAPE, **shape}))
    init_weights(model, glorot=True)
    return model


def test_a_language_model(batch: Batch) -> None:
    model = built(decoder_layers=2, position="rotary", ffn_gated=True, kv_heads=2)
    assert ModelFlops.of(model)(batch) == pytest.approx(counted(model, batch), rel=0.02)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_mixture_of_experts(batch: Batch, frozen: bool) -> None:
    moe = {"experts": 6, "experts_per_token": 2, "expert_size": 40, "shared_size": 32, "dense_layers": [0]}
    model = built(decoder_layers=4, position="rotary", ffn_gated=True, moe=moe)
    if frozen:
        model.requires_grad_(False)
        model.decoder.layers[0].requires_grad_(True)
    assert ModelFlops.of(model)(batch) == pytest.approx(counted(model, batch), rel=0.02)


@pytest.mark.parametrize("q_rank", [0, 40])
def test_latent_attention(batch: Batch, q_rank: int) -> None:
    latent = {"kv_rank": 24, "q_rank": q_rank, "value_dim": 14}
    model = built(decoder_layers=3, position="rotary", head_dim=20, rope={"rotary_dim": 8}, latent=latent)
    assert ModelFlops.of(model)(batch) == pytest.approx(counted(model, batch), rel=0.03)


def test_an_encoder_decoder(batch: Batch) -> None:
    model = built(encoder_layers=2, decoder_layers=1)
    source = torch.full((3, 11), 5)
    both = replace(batch, src_BS=source, src_mask_BS=torch.ones_like(source, dtype=torch.bool))
    assert ModelFlops.of(model)(both) == pytest.approx(counted(model, both), rel=0.02)


def test_what_is_frozen_has_no_gradient_of_its_weights(batch: Batch) -> None:
    model = built(decoder_layers=4)
    full = ModelFlops.of(model)(batch)
    add_lora(model, ["q_proj", "v_proj"], rank=4, alpha=8.0)
    freeze_all_but_lora(model)
    adapted = ModelFlops.of(model)(batch)
    assert adapted < 0.75 * full
    # the first layer's input needs no gradient, which is left out of account
    assert adapted == pytest.approx(counted(model, batch), rel=0.08)


def test_documents_of_a_packed_row_and_a_window_look_less_far(batch: Batch) -> None:
    flops = ModelFlops.of(built(decoder_layers=1))
    pair = flops.decoder_pairs[None]
    doc = torch.zeros_like(batch.tgt_BT)
    doc[:, :3], doc[:, 3:5] = 1, 2  # and three positions of padding
    packed = replace(batch, doc_BT=doc)
    assert flops(batch) - flops(packed) == pytest.approx(pair * 3 * (36 - 6 - 3))
    assert flops(batch) - replace(flops, decoder_pairs={2: pair})(batch) == pytest.approx(pair * 3 * (36 - 15))
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    mixed = ModelFlops.of(built(decoder_layers=3, sliding_window=2, layer_types=kinds))
    assert mixed.decoder_pairs == {2: 2 * pair, None: pair}


def test_the_share_is_of_the_seconds_and_the_peak(batch: Batch) -> None:
    flops = ModelFlops.of(built(decoder_layers=1))
    machine = HardwareMonitor(torch.device("cpu"), flops, peak=10 * flops(batch))
    assert list(machine.watch([batch, batch])) == [batch, batch]
    assert machine.metrics(seconds=4.0)["mfu"] == pytest.approx(2 / 40)
    assert machine.metrics(seconds=4.0)["mfu"] == 0
    assert "mfu" not in HardwareMonitor(torch.device("cpu")).metrics(1.0)


def test_the_peak_is_that_of_a_matrix_product_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    assert 1e8 < matmul_peak(torch.device("cpu"), torch.float32, seconds=0.05) < 1e14
    assert torch.equal(state, torch.get_rng_state())


def test_a_run_reports_them(copy_task: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    monkeypatch.setattr("onmt_llm.training.metrics.build.matmul_peak", lambda device, dtype: 1e9)
    with caplog.at_level("INFO"):
        copy_task.run(
            watching={"measure_flops": True, "profile_steps": [2, 3], "profile_flops": True},
            logging={"progress": "line", "report_every": 3},
        )
    rows = [json.loads(line) for line in (copy_task.folder / "toy_metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    assert all(0 < row["mfu"] < 100 and row["peak_rss_mib"] > 10 for row in train) and len(train) == 2
    assert "; MFU " in caplog.text and "Profiled updates 2 to 3" in caplog.text
    folder = copy_task.folder / "toy_profile"
    events = json.loads((folder / "rank0_trace.json").read_text())["traceEvents"]
    assert any(event.get("name") == "aten::addmm" or event.get("name") == "aten::mm" for event in events)
    assert "aten::" in (folder / "rank0_table.txt").read_text()
    assert "aten.mm" in (folder / "rank0_flops.txt").read_text()


def test_corpora_are_validated_one_by_one(copy_task: Any) -> None:
    corpora = copy_task.corpora
    more = {"valid_first": corpora["valid"], "valid_second": corpora["train"]}
    copy_task.run(
        "several",
        corpora={"data": {"train": corpora["train"], **more}},
        run={"save_model": str(copy_task.folder / "several"), "seed": 7, "train_steps": 2, "valid_steps": 2},
    )
    copy_task.run(
        "one",
        corpora={"data": {"train": corpora["train"], "valid": corpora["valid"]}},
        run={"save_model": str(copy_task.folder / "one"), "seed": 7, "train_steps": 2, "valid_steps": 2},
    )
    (several,), (one,) = copy_task.validations("several"), copy_task.validations("one")
    assert several["valid_first/xent"] == pytest.approx(one["xent"], abs=1e-6)
    low, high = sorted((several["valid_first/xent"], several["valid_second/xent"]))
    assert low < several["xent"] < high and several["valid_second/accuracy"] >= 0
    assert not any("/xent" in key for key in one)
