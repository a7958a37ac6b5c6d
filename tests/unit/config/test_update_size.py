"""`global_batch_size` and `max_tokens`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

import onmt_llm
from onmt_llm.cli.data import main
from onmt_llm.config.train import TrainConfig
from onmt_llm.config.update_size import for_processes
from onmt_llm.errors import ConfigError


def config(run: dict[str, Any], **batching: Any) -> TrainConfig:
    return TrainConfig.model_validate({"run": run, "batching": batching})


def test_micro_batches_of_all_processes_make_an_update() -> None:
    given = config({"global_batch_size": 512}, batch_size=4)
    assert [for_processes(given, number).run.accum_count for number in (1, 2, 32)] == [[128], [64], [4]]
    with pytest.raises(
        ConfigError, match="multiple of batch_size x processes that read, 4 x 3 = 12, but is 512"
    ) as caught:
        for_processes(given, 3)
    assert caught.value.hint and caught.value.hint.startswith("global_batch_size: 516")
    together = TrainConfig.model_validate({**given.model_dump(exclude_unset=True), "devices": {"tensor_parallel": 2}})
    assert for_processes(together, 8).run.accum_count == for_processes(given, 4).run.accum_count
    plain = config({"accum_count": [3]})
    assert for_processes(plain, 5) is plain


@pytest.mark.parametrize(
    "batching",
    [
        {"batch_size": 4, "packing_length": 256},
        {"batch_size": 1024, "batch_type": "tokens"},
        {"batch_size": 1024, "batch_type": "tokens", "packing_length": 256},
    ],
)
def test_tokens_make_steps(batching: dict[str, Any]) -> None:
    given = config({"max_tokens": 10_241, "accum_count": [2]}, packing="wrap", **batching)
    assert [for_processes(given, number).run.train_steps for number in (1, 2)] == [6, 3]


@pytest.mark.parametrize(
    ("run", "batching", "sentence"),
    [
        ({"global_batch_size": 8, "accum_count": [2]}, {}, "accum_count must be left out with global_batch_size"),
        ({"max_tokens": 8, "train_steps": 2}, {"packing": "wrap"}, "train_steps must be left out with max_tokens"),
        ({"max_tokens": 8}, {}, "max_tokens needs packing"),
    ],
)
def test_options_that_exclude_each_other(run: dict[str, Any], batching: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        config(run, **batching)


def test_a_run_on_token_shards_has_as_many_tokens_as_it_should(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("".join(f"w{number}\n" for number in range(9)))
    (tmp_path / "text.txt").write_text("\n".join(f"w{number % 9} w3 w{number % 5}" for number in range(400)) + "\n")
    corpus = {"path_txt": str(tmp_path / "text.txt"), "documents_by": "line"}
    shared = {"src_vocab": str(tmp_path / "vocab.txt"), "save_model": str(tmp_path / "m"), "seed": 1, "device": "cpu"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**shared, "data": {"web": corpus}}))
    assert main(["pack", "-config", str(tmp_path / "run.yaml"), "-save_data", str(tmp_path / "data")]) == 0
    (shards,) = tmp_path.glob("data/packed/web-*")
    result = onmt_llm.train(
        **shared,
        data={"web": {"path_tokens": str(shards)}},
        decoder_layers=1,
        hidden_size=8,
        heads=1,
        ffn_size=8,
        packing="wrap",
        packing_length=16,
        batch_size=2,
        global_batch_size=6,
        max_tokens=1000,
        save_checkpoint_time="0.001",
        keep_checkpoint=2,
    )
    assert result.step == math.ceil(1000 / (6 * 16))
    records = [json.loads(line) for line in (tmp_path / "m_metrics.jsonl").read_text().splitlines()]
    tokens = sum(record.get("tokens", 0) for record in records)
    assert 0.9 * 1000 < tokens <= result.step * 6 * 16, records
    assert sorted(path.name for path in tmp_path.glob("m_step_*")) == ["m_step_10", "m_step_11"]
