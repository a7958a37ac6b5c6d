"""Files of litgpt's `pretrain`: every key is translated, noted or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.cli.jobs import load_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.train import TrainConfig
from onmt_llm.config.update_size import for_processes
from onmt_llm.errors import ConfigError

FILE: dict[str, Any] = {
    "model_name": None,
    "model_config": None,
    "out_dir": "out/pretrain",
    "precision": "bf16-mixed",
    "initial_checkpoint_dir": "base",
    "resume": "auto",
    "data": {"class_path": "litgpt.data.LitData", "init_args": {"data_path": "d", "split_names": ["train", "val"]}},
    "train": {
        "save_interval": 1000,
        "log_interval": 2,
        "global_batch_size": 512,
        "micro_batch_size": 4,
        "lr_warmup_steps": 2000,
        "lr_warmup_fraction": None,
        "epochs": None,
        "max_tokens": 3_000_000_000_000,
        "max_steps": None,
        "max_time": None,
        "max_seq_length": 2048,
        "tie_embeddings": None,
        "max_norm": 1.0,
        "min_lr": 4e-5,
    },
    "eval": {"interval": 500, "max_iters": 100, "initial_validation": False, "final_validation": True},
    "optimizer": {
        "class_path": "torch.optim.AdamW",
        "init_args": {"lr": 4e-4, "weight_decay": 0.1, "betas": [0.9, 0.95], "fused": True},
    },
    "devices": "auto",
    "num_nodes": 4,
    "tokenizer_dir": None,
    "logger_name": "tensorboard",
    "seed": 42,
}


def load(folder: Path, **changes: Any) -> Loaded[TrainConfig]:
    (folder / "x.yaml").write_text(yaml.safe_dump({**FILE, **changes}))
    return load_job("onmt_llm_train", ["-config", str(folder / "x.yaml")])


def test_every_key_has_its_option(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    config = loaded.job
    assert {name: corpus.path_tokens for name, corpus in config.corpora.data.items()} == {
        "train": "d/train",
        "valid": "d/val",
    }
    assert (config.start.train_from, config.start.init_from) == ("auto", "base")
    run, optim, batching = config.run, config.optimizer, config.batching
    assert (run.save_model, run.save_checkpoint_steps, run.valid_steps, run.seed) == (
        "out/pretrain/model",
        1000,
        500,
        42,
    )
    assert (run.global_batch_size, run.max_tokens, batching.batch_size, batching.packing_length) == (
        512,
        3_000_000_000_000,
        4,
        2048,
    )
    assert (batching.packing, batching.isolate_documents, config.performance.model_dtype) == ("wrap", False, "bf16")
    assert (optim.learning_rate, optim.weight_decay, optim.adam_beta1, optim.adam_beta2) == (4e-4, 0.1, 0.9, 0.95)
    assert (optim.decay_method, optim.warmup_steps, optim.min_learning_rate, optim.max_grad_norm) == (
        "cosine",
        2000,
        4e-5,
        1.0,
    )
    assert config.logging.report_every == 2 and config.logging.tensorboard
    notes = " ".join(loaded.notes)
    for key in ("devices", "num_nodes", "eval.max_iters", "eval.final_validation", "init_args.fused"):
        assert f"'{key}' has no effect" in notes
    resolved = for_processes(config, 32).run
    assert resolved.accum_count == [4] and resolved.train_steps == 2_861_023  # 3e12 / (512 * 2048), rounded up


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_name": "pythia-14m"}, r"x.yaml:\d+  'model_name' is an option of litgpt that has no counterpart"),
        ({"tokenizer_dir": "t"}, "src_subword_model names the file"),
        ({"data": "TinyLlama"}, "but is TinyLlama: other classes of litgpt download"),
        (
            {"precision": "16-true"},
            "'precision' must be one of bf16-true, bf16-mixed, 16-mixed, 32-true, but is '16-true'",
        ),
        ({"train": {"max_tokenz": 1}}, r"x.yaml:\d+  'train.max_tokenz' is not a known option of litgpt"),
        ({"train": {**FILE["train"], "lr_warmup_fraction": 0.1}}, "'train.lr_warmup_fraction' is an option of litgpt"),
        ({"train": {**FILE["train"], "max_steps": 5}}, "train_steps must be left out with max_tokens"),
        ({"eval": {"initial_validation": True}}, "'eval.initial_validation' is an option of litgpt"),
        ({"optimizer": {"class_path": "torch.optim.SGD"}}, "'class_path' of the optimiser must be AdamW"),
        ({"optimizer": {"init_args": {"amsgrad": True}}}, "'init_args.amsgrad' is not a known option of litgpt"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load(tmp_path, **changes)


@pytest.mark.parametrize(("name", "option"), [("TextFiles", "path_txt"), ("LitData", "path_tokens")])
def test_corpora(tmp_path: Path, name: str, option: str) -> None:
    key = "train_data_path" if name == "TextFiles" else "data_path"
    corpora = load(tmp_path, data={"class_path": name, "init_args": {key: "d"}}).job.corpora.data
    assert [*corpora] == ["train"] and getattr(corpora["train"], option)
