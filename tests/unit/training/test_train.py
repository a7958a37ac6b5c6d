"""Whole runs on toy data: learning, exact resume, checkpoints, refusals."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.cli.build_vocab import main as build_vocab
from onmt_llm.cli.train import main
from onmt_llm.config.learning import OptimConfig
from onmt_llm.config.train import TrainConfig
from onmt_llm.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from onmt_llm.training.checkpointing import saver
from onmt_llm.training.dry_run.plan import plan
from onmt_llm.training.optim import precision
from onmt_llm.training.result import TrainResult
from onmt_llm.training.state import TrainingState, read_state
from onmt_llm.training.train import train
from options import train_config

WORDS = [f"w{i}" for i in range(12)]
ARCHITECTURE = {
    "decoder_layers": 2,
    "hidden_size": 32,
    "heads": 4,
    "kv_heads": 2,
    "ffn_size": 48,
    "ffn_gated": True,
    "activation": "silu",
    "norm": "rmsnorm",
    "position": "rotary",
}
LORA = {"lora_layers": ["q_proj", "linear_values", "w_2"], "lora_rank": 2, "lora_alpha": 4.0, "lora_dropout": 0.1}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with a copy task: train.src/tgt, valid.src/tgt, vocab.txt."""
    rng = random.Random(1)
    for name, count in (("train", 1500), ("valid", 20)):
        lines = "".join(" ".join(rng.choices(WORDS, k=4)) + "\n" for _ in range(count))
        (tmp_path / f"{name}.src").write_text(lines)
        (tmp_path / f"{name}.tgt").write_text(lines)
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return tmp_path


def config(folder: Path, *, valid: bool = False, **sections: dict[str, Any]) -> TrainConfig:
    """Options of a run on the copy task; `sections` are merged over them."""
    data = {"train": {"path_src": str(folder / "train.src"), "path_tgt": str(folder / "train.tgt")}}
    if valid:
        data["valid"] = {"path_src": str(folder / "valid.src"), "path_tgt": str(folder / "valid.tgt")}
    task = "seq2seq" if sections.get("architecture", {}).get("encoder_layers") else "lm"
    base: dict[str, dict[str, Any]] = {
        "corpora": {"data": data, "zero_out_prompt_loss": True},
        "vocabulary": {"src_vocab": str(folder / "vocab.txt")},
        "batching": {"batch_size": 8, "bucket_size": 40},
        "architecture": ARCHITECTURE,
        "optimizer": {"learning_rate": 0.01},
        "run": {**saves(folder, "toy"), "model_task": task},
        "logging": {"progress": "none"},
    }
    return train_config({name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}})


def run(folder: Path, **sections: Any) -> TrainResult:
    return train(config(folder, **sections))


def saves(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """The `run` section of a run that writes to `run/<name>_step_N`."""
    return {"save_model": str(folder / "run" / name), "seed": 7, "train_steps": 6, "save_checkpoint_steps": 3, **more}


def tensors(path: Path | str) -> dict[str, torch.Tensor]:
    return dict(Checkpoint.open(path).tensors())


def metrics(folder: Path, name: str = "toy") -> list[dict[str, Any]]:
    lines = (folder / f"run/{name}_metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def base(corpus: Path) -> Path:
    """A trained model to fine-tune: its folder."""
    result = run(corpus, run=saves(corpus, "base", train_steps=2))
    assert result.checkpoint is not None
    return result.checkpoint


@pytest.mark.parametrize(("task", "position"), [("lm", "rotary"), ("seq2seq", "sinusoidal")])
def test_a_copy_task_is_learned_in_seconds(corpus: Path, task: str, position: str) -> None:
    encoder_layers = 2 if task == "seq2seq" else 0
    result = run(
        corpus,
        valid=True,
        architecture={**ARCHITECTURE, "encoder_layers": encoder_layers, "position": position},
        vocabulary={"src_vocab": str(corpus / "vocab.txt"), "share_vocab": True},
        batching={"batch_size": 64, "bucket_size": 512},
        optimizer={"learning_rate": 0.005, "decay_method": "cosine", "warmup_steps": 20, "adam_beta2": 0.98},
        run=saves(corpus, "toy", train_steps=140, save_checkpoint_steps=140, valid_steps=70, param_init_glorot=True),
        logging={"report_every": 50, "progress": "line"},
    )
    rows = metrics(corpus)
    assert result.status == "finished" and result.step == 140
    assert result.best_ppl < 1.3
    assert rows[-1]["accuracy"] > 95
    steps = [(50, "train"), (70, "valid"), (100, "train"), (140, "train"), (140, "valid")]
    assert [(row["step"], row["split"]) for row in rows] == steps


def test_a_checkpoint_holds_all_that_an_engine_needs(corpus: Path) -> None:
    path = run(corpus, corpora={"data": config(corpus).corpora.data, "transforms": []}).checkpoint
    assert path == corpus / "run/toy_step_6"
    assert {file.name for file in path.iterdir()} >= {"config.yaml", "model.safetensors", "vocab.txt", "train_state"}
    codec = Checkpoint.open(path).codec()
    # 4 specials and 12 words are a multiple of 8 already
    assert list(codec.vocab) == ["<unk>", "<blank>", "<s>", "</s>", *WORDS]
    assert codec.encode("w3 w1") == ["<s>", "w3", "w1"]
    model = load_model(path)
    assert model(torch.tensor([codec.vocab.ids(["<s>", "w3"])])).shape == (1, 2, 16)


SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"optim": "adamw", "decay_method": "noam", "warmup_steps": 4, "learning_rate": 0.3},
    "adafactor": {"optim": "adafactor", "decay_method": "linear", "warmup_steps": 2},
    "sgd": {"optim": "sgd", "learning_rate": 0.5},
    "adamw8bit": {"optim": "adamw8bit"},
}


@pytest.mark.parametrize("optim", list(SETTINGS))
@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_equals_one_that_never_stopped(corpus: Path, base: Path, lora: bool, optim: str) -> None:
    if "bit" in optim:
        pytest.importorskip("bitsandbytes")
    sections: dict[str, Any] = {
        "optimizer": SETTINGS[optim],
        "batching": {"batch_size": 3, "bucket_size": 40},
        "logging": {"progress": "none", "report_every": 1},
        "valid": True,
        **({"lora": LORA} if lora else {}),
    }
    common = {"dropout": [0.1], "attention_dropout": [0.1], "accum_count": [2], "valid_steps": 2}
    start = {"train_from": str(base)} if lora else {}
    run(corpus, **sections, run=saves(corpus, "whole", **common, **start))
    # as if the run had been killed after step 4: its checkpoint is of step 3, its metrics go further
    (corpus / "run/part_metrics.jsonl").write_text((corpus / "run/whole_metrics.jsonl").read_text())
    result = run(corpus, **sections, run=saves(corpus, "part", **common, train_from=str(corpus / "run/whole_step_3")))

    assert result.step == 6
    whole, part = (tensors(corpus / f"run/{name}_step_6") for name in ("whole", "part"))
    assert whole.keys() == part.keys()
    assert all(torch.equal(whole[name], part[name]) for name in whole)
    assert figures(metrics(corpus, "whole")) == figures(metrics(corpus, "part"))


def test_a_resumed_run_in_float16_keeps_its_loss_scale(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # far too large at first, and soon raised again
    monkeypatch.setattr(precision, "FIRST_LOSS_SCALE", 2.0**16)
    monkeypatch.setattr(precision, "GROWTH_INTERVAL", 2)
    common = {"model_dtype": "fp16", "train_steps": 12, "save_checkpoint_steps": 1}
    run(corpus, run=saves(corpus, "whole", **common))
    states = [read_state(corpus / f"run/whole_step_{step}") for step in range(1, 13)]
    courses = [(state.progress.loss_scale, state.progress.good_steps) for state in states if state is not None]
    assert len({scale for scale, _ in courses}) > 2 and {good for _, good in courses} == {0, 1}
    for step in (2, 7, 8):
        name = f"from_{step}"
        run(corpus, run=saves(corpus, name, **common, train_from=str(corpus / f"run/whole_step_{step}")))
        state = read_state(corpus / f"run/{name}_step_12")
        assert state is not None and (state.progress.loss_scale, state.progress.good_steps) == courses[-1]
        for file in ("model.safetensors", "train_state/optimizer.safetensors"):
            whole, part = (corpus / f"run/{each}_step_12" / file for each in ("whole", name))
            assert whole.read_bytes() == part.read_bytes()


def figures(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What of the metrics does not depend on the clock."""
    return [tuple(row.get(key) for key in ("step", "split", "loss", "ppl", "lr", "grad_norm")) for row in rows]


def test_under_lora_only_the_adapter_is_written_and_the_base_is_untouched(corpus: Path, base: Path) -> None:
    before = tensors(base)
    run(corpus, lora=LORA, run=saves(corpus, "lora", train_from=str(base)))
    adapter = Checkpoint.open(corpus / "run/lora_step_6")
    assert adapter.is_adapter
    spec = adapter.config.adapter
    assert spec is not None and spec.base_fingerprint == Checkpoint.open(base).fingerprint
    assert spec.layers == ["q_proj", "v_proj", "down_proj"]
    assert {name.rsplit(".", 2)[1] for name in adapter.names()} == {"q_proj", "v_proj", "down_proj"}
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors(base).items())
    ids = torch.tensor([[2, 5, 6, 7]])
    assert not torch.equal(load_model(adapter.path)(ids), load_model(base)(ids))


@pytest.mark.parametrize("quant_type", ["int8", "bnb_8bit", "bnb_NF4"])
def test_quantised_layers_train_with_lora(corpus: Path, base: Path, quant_type: str) -> None:
    if quant_type != "int8":
        pytest.importorskip("bitsandbytes")
    sections: dict[str, Any] = {
        "lora": LORA,
        "quantization": {"quant_layers": ["w_1", "w_3"], "quant_type": quant_type},
        "run": saves(corpus, "quant", train_from=str(base)),
    }
    run(corpus, **sections)
    spec = Checkpoint.open(corpus / "run/quant_step_6").config.adapter
    assert spec is not None and (spec.quant_layers, spec.quant_type) == (["gate_proj", "up_proj"], quant_type)


def test_keep_checkpoint_removes_the_oldest_of_this_run(corpus: Path) -> None:
    older = corpus / "run/toy_step_50"
    run(corpus, run=saves(corpus, "toy", train_steps=1))
    (corpus / "run/toy_step_1").rename(older)
    run(corpus, run=saves(corpus, "toy", train_steps=6, save_checkpoint_steps=1, keep_checkpoint=2))
    assert sorted(p.name for p in (corpus / "run").glob("*_step_*")) == ["toy_step_5", "toy_step_50", "toy_step_6"]
    assert not list((corpus / "run").glob(".*"))


def test_the_base_of_an_adapter_is_never_pruned(corpus: Path, base: Path) -> None:
    base = base.rename(base.with_name("toy_step_1"))
    settings = saves(corpus, "toy", train_from=str(base), save_checkpoint_steps=2, keep_checkpoint=1)
    run(corpus, lora=LORA, run=settings)
    assert sorted(p.name for p in (corpus / "run").glob("*_step_*")) == ["toy_step_1", "toy_step_6"]


def test_train_steps_already_reached_says_so_and_ends(
    corpus: Path, base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    with caplog.at_level("INFO"):
        result = run(corpus, run=saves(corpus, "toy", train_steps=2, train_from=str(base)))
    assert (result.status, result.step) == ("already done", 2)
    assert "base_step_2 is of step 2, and train_steps is 2" in caplog.text


def test_reset_optim_decides_what_is_remembered(
    corpus: Path, base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    first_steps = {}
    for reset in ("none", "states", "keep_states", "all"):
        with caplog.at_level("INFO"):
            settings = saves(corpus, reset, train_steps=3, train_from=str(base), reset_optim=reset)
            run(
                corpus, run=settings, optimizer={"learning_rate": 0.02}, logging={"progress": "none", "report_every": 1}
            )
        first_steps[reset] = (metrics(corpus, reset)[0]["step"], metrics(corpus, reset)[0]["lr"])
    assert first_steps == {"none": (3, 0.02), "states": (3, 0.02), "keep_states": (3, 0.02), "all": (1, 0.02)}
    assert "learning_rate is 0.02 now; it was 0.01" in caplog.text


def test_settings_that_are_not_written_are_those_of_the_resumed_run(corpus: Path, base: Path) -> None:
    settings = config(corpus, run=saves(corpus, "toy", train_steps=3, train_from=str(base)))
    train(settings.model_copy(update={"optimizer": OptimConfig()}))
    assert metrics(corpus)[0]["lr"] == 0.01 != OptimConfig().learning_rate


def test_another_optimiser_begins_anew_with_a_warning(
    corpus: Path, base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    run(corpus, run=saves(corpus, "toy", train_steps=3, train_from=str(base)), optimizer={"optim": "sgd"})
    assert "The state of adamw does not fit sgd" in caplog.text


def test_other_corpora_begin_anew_with_a_warning(
    corpus: Path, base: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.log.logger.propagate", True)
    data = {"data": {"other": {"path_src": str(corpus / "valid.src"), "path_tgt": str(corpus / "valid.tgt")}}}
    result = run(corpus, corpora=data, run=saves(corpus, "toy", train_steps=3, train_from=str(base)))
    assert result.step == 3
    assert "The data starts from the beginning" in caplog.text


@pytest.mark.parametrize("save_async", [False, True])
def test_a_failed_save_ends_the_run_and_leaves_the_older_checkpoint(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, save_async: bool
) -> None:
    write = saver.write_optimizer

    full_at = 2

    def full(directory: Path, state: TrainingState) -> None:
        if json.loads(state.json_text)["progress"]["step"] == full_at:
            raise OSError(28, "No space left on device")
        write(directory, state)

    monkeypatch.setattr(saver, "write_optimizer", full)
    sections = {
        "run": saves(corpus, "toy", save_checkpoint_steps=1, keep_checkpoint=1),
        "safety": {"save_async": save_async},
    }
    with pytest.raises(CheckpointError, match=r"toy_step_2 .*No space left.*bytes are free") as caught:
        run(corpus, **sections)
    assert caught.value.hint.endswith("toy_step_1 is complete")
    assert [path.name for path in (corpus / "run").glob("*step*")] == ["toy_step_1"]
    assert load_model(corpus / "run/toy_step_1") is not None
    full_at, sections["run"] = 1, saves(corpus, "other", save_checkpoint_steps=1)
    with pytest.raises(CheckpointError) as caught:
        run(corpus, **sections)
    assert caught.value.hint == "make room, and start the run again: it has no checkpoint yet"


def test_recomputing_parts_changes_nothing(corpus: Path, base: Path) -> None:
    common = {"train_steps": 3, "dropout": [0.1], "attention_dropout": [0.1], "train_from": str(base)}
    ways: dict[str, list[str]] = {"kept": [], "parts": ["ffn", "mha", "lora"], "blocks": ["block"]}
    for name, parts in ways.items():
        run(corpus, lora=LORA, run=saves(corpus, name, **common, use_ckpting=parts))
    kept, *others = (tensors(corpus / f"run/{name}_step_3") for name in ways)
    assert all(torch.equal(other[name], tensor) for other in others for name, tensor in kept.items())


def test_architecture_is_the_checkpoints_unless_overridden(corpus: Path, base: Path) -> None:
    only_names = {"hidden_size": 32, "kv_heads": 2, "head_dim": 8, "rope": {"theta": 10000.0}}
    run(corpus, architecture=only_names, run=saves(corpus, "a", train_from=str(base), reset_optim="all"))
    wrong = {**ARCHITECTURE, "heads": 8, "rope": {"theta": 5000.0}}
    settings = saves(corpus, "b", train_from=str(base), reset_optim="all")
    with pytest.raises(ConfigError, match=r"heads must be 4, .* but is 8(?s:.)*rope.theta must be 10000.0"):
        run(corpus, architecture=wrong, run=settings)
    run(corpus, architecture={"rope": {"theta": 5000.0}}, run={**settings, "override_opts": True})
    model = Checkpoint.open(corpus / "run/b_step_6").config.model
    assert (model.rope.theta, model.hidden_size, model.heads, model.activation) == (5000.0, 32, 4, "silu")


def test_the_task_is_the_checkpoints(corpus: Path, base: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="onmt_llm")
    begun = saves(corpus, "tuned", train_from=str(base), train_steps=3)
    run(corpus, run={**begun, "model_task": None}, vocabulary={"tgt_vocab": str(corpus / "vocab.txt")})
    assert f"Task: lm, since {base} is a language model." in caplog.text
    with pytest.raises(ConfigError, match=r"must mean lm, since .* but means seq2seq"):
        run(corpus, run={**begun, "model_task": "seq2seq"})


def test_a_vocabulary_is_counted_for_the_task_of_its_checkpoint(corpus: Path, base: Path) -> None:
    data = {"data": {"train": {"path_src": str(corpus / "train.src"), "path_tgt": str(corpus / "train.tgt")}}}
    options = {"train_from": str(base), "update_vocab": True, "src_vocab": str(corpus / "counted.txt")}
    file = corpus / "vocab.yaml"
    file.write_text(yaml.safe_dump({**data, **options}))
    assert build_vocab(["-config", str(file)]) == 0 and (corpus / "counted.txt").exists()
    assert build_vocab(["-config", str(file), "-overwrite", "-model_task", "seq2seq"]) == ConfigError.exit_code


def test_tensors_are_not_forced_into_another_shape(
    corpus: Path, base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus)
    data = "data: {a: {path_src: train.src}}\nsave_model: run/x\noverride_opts: true\n"
    Path("x.yaml").write_text(f"{data}train_from: {base}\nrope: {{theta: 5000}}\nhidden_size: 64\nlm_head_bias: true\n")
    assert main(["-config", "x.yaml", "-dry_run"]) == 2
    said = capsys.readouterr().err
    assert "x.yaml:6  hidden_size must be 32, since the tensors of" in said and "x.yaml:7  lm_head_bias" in said
    assert "theta must be" not in said and len(said.splitlines()) < 10


def test_an_adapter_goes_on_as_it_is_or_not_at_all(corpus: Path, base: Path) -> None:
    run(corpus, lora=LORA, run=saves(corpus, "first", train_from=str(base)))
    adapter = str(corpus / "run/first_step_6")
    run(corpus, run=saves(corpus, "second", train_from=adapter, reset_optim="all", train_steps=3))
    first, second = (Checkpoint.open(path) for path in (adapter, corpus / "run/second_step_3"))
    assert first.config.adapter == second.config.adapter and first.fingerprint != second.fingerprint
    with pytest.raises(ConfigError, match="lora_rank is 5 in the options and 2 in the adapter"):
        run(corpus, lora={"lora_rank": 5}, run=saves(corpus, "third", train_from=adapter, reset_optim="all"))


def test_samples_are_written_instead_of_training(corpus: Path) -> None:
    data = {"data": config(corpus).corpora.data, "n_sample": 3, "save_data": str(corpus / "samples")}
    assert run(corpus, corpora=data).status == "sampled"
    assert len((corpus / "samples/sample/train.sample.src").read_text().splitlines()) == 3
    assert not (corpus / "run").exists()


def test_the_plan_counts_what_a_run_needs(corpus: Path, base: Path) -> None:
    quantised = {"quant_layers": ["w_1"], "quant_type": "int8"}
    settings = saves(corpus, "toy", train_from=str(base), accum_count=[4])
    got = plan(config(corpus, lora=LORA, quantization=quantised, run=settings))
    # rank 2 on q (32 -> 32), v (32 -> 16) and down (48 -> 32) of two blocks
    assert got.trainable == 2 * 2 * ((32 + 32) + (32 + 16) + (48 + 32))
    assert (got.lora_layers, got.quant_layers) == (6, 2)
    assert got.memory.held["quantised weights"] == 2 * 32 * 48
    assert got.memory.backward["gradients"] == 4 * got.trainable and got.memory.held["optimiser"] == 8 * got.trainable
    assert got.positions_per_step == 4 * got.sampled.batch.positions
    assert "Initialised from" in got.report() and f"trainable {got.trainable}" in got.report()


FAILURES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no training corpus": ({"corpora": {"data": {"valid": {"path_src": "x"}}}}, ConfigError, "names only valid"),
    "lora without a base": ({"lora": LORA}, ConfigError, "set train_from"),
    "no vocabulary": ({"vocabulary": {"src_vocab": None}}, ConfigError, "src_vocab must name a vocabulary file"),
    "missing vocabulary": ({"vocabulary": {"src_vocab": "/nowhere.txt"}}, DataError, "nowhere.txt"),
    "missing checkpoint": ({"run": {"train_from": "/nowhere"}}, CheckpointError, "no checkpoint at /nowhere"),
    "many processes": (
        {"devices": {"world_size": 4}},
        UnsupportedError,
        r"world_size 4 needs 4 processes(?s:.)*torchrun",
    ),
    "activations that have nowhere to go": (
        {"run": {"offload_activations": True}},
        ConfigError,
        r"offload_activations needs a GPU.*the device is cpu(?s:.)*use_ckpting: \[block\]",
    ),
    "quantised full training": (
        {"quantization": {"quant_layers": ["w_1"], "quant_type": "int8"}},
        ConfigError,
        "quant_layers needs LoRA",
    ),
    "small vocab_size": (
        {"architecture": {**ARCHITECTURE, "vocab_size": 9}},
        ConfigError,
        "vocab_size must be at least",
    ),
    "no decoder": (
        {"architecture": {"decoder_layers": 0, "encoder_layers": 1}},
        ConfigError,
        "decoder_layers must be >= 1",
    ),
}


@pytest.mark.parametrize("case", list(FAILURES))
def test_what_cannot_work_is_refused_in_one_sentence(corpus: Path, case: str) -> None:
    sections, kind, message = FAILURES[case]
    sections = {**sections, **({"run": {**saves(corpus, "toy"), **sections["run"]}} if "run" in sections else {})}
    with pytest.raises(kind, match=message):
        run(corpus, **sections)
    assert not (corpus / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(corpus: Path) -> None:
    with pytest.raises(UnsupportedError, match="device cuda needs a CUDA GPU"):
        run(corpus, devices={"device": "cuda"})


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_built(corpus: Path) -> None:
    huge = {"hidden_size": 2**20, "ffn_size": 2**20, "heads": 2**10, "kv_heads": 2**10, "decoder_layers": 1024}
    with pytest.raises(ConfigError, match="must make a model that memory can hold"):
        run(corpus, architecture={**ARCHITECTURE, **huge})
