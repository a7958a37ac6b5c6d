"""From YAML and flags to a validated job configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.config.compat.translate import known_names
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.section import options_of
from onmt_llm.errors import ConfigError

DATA = Path(__file__).parents[3] / "data"


def train(*argv: str) -> Loaded[Any]:
    return load_job("onmt_llm_train", argv)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_reference_recipe_loads_as_written() -> None:
    loaded = train("-config", str(DATA / "replicate_vicuna.yaml"))
    job = loaded.job
    assert job.architecture.model_dump(exclude_unset=True) == {
        "decoder_layers": 32,
        "hidden_size": 4096,
        "heads": 32,
        "ffn_size": 11008,
        "ffn_gated": True,
        "activation": "silu",
        "norm": "rmsnorm",
        "position": "rotary",
        "attn_bias": False,
        "attn_out_bias": False,
    }
    assert job.start.model_task == "lm" and job.optimizer.learning_rate == 2e-05
    assert (job.batching.batch_size, job.batching.valid_batch_size) == (500, 500)
    assert sum("written twice" in warning for warning in loaded.warnings) == 2
    assert job.quantization.resolved_type == "bnb_8bit"
    assert [corpus.weight for corpus in job.corpora.data.values()] == [10, 10]


@pytest.mark.parametrize(("name", "beam", "n_best"), [("py", 1, 1), ("ct2", 3, 2)])
def test_the_reference_inference_files_load_as_written(name: str, beam: int, n_best: int) -> None:
    job = load_job("onmt_llm_translate", ["-config", str(DATA / f"translate_opts_{name}.yaml")]).job
    assert (job.generation.beam_size, job.generation.n_best) == (beam, n_best)
    assert job.inference.src is None and job.generation.random_sampling_topk == 40


def test_later_sources_win_and_say_so(tmp_path: Path) -> None:
    first = write(tmp_path, "seed: 1\ntrain_steps: 5\nrun: {keep_checkpoint: 3}\n")
    second = tmp_path / "y.yaml"
    second.write_text("train_steps: 6\ndata: {a: {path_src: t, weight: 2}}\n")
    loaded = train("-config", first, "-config", str(second), "-seed", "9", "--set", "data.a.weight=5")
    assert (loaded.job.run.seed, loaded.job.run.train_steps, loaded.job.run.keep_checkpoint) == (9, 6, 3)
    assert loaded.job.corpora.data["a"].weight == 5
    assert loaded.origins["train_steps"] == f"{second}:1" and loaded.origins["seed"] == "-seed"


def test_an_option_may_be_in_any_section(tmp_path: Path) -> None:
    """A section's name is for readers: a file stays valid when an option moves to another section."""
    job = train("-config", write(tmp_path, "run: {dropout: 0.1, model_dtype: bf16, train_from: c}\nseed: 3\n")).job
    assert (job.regularization.dropout, job.performance.model_dtype, job.start.train_from) == ([0.1], "bf16", "c")
    with pytest.raises(ConfigError, match=r"x\.yaml:3  'dropout' must be < 1, but is 2"):
        train("-config", write(tmp_path, "run:\n  seed: 1\n  dropout: 2\n"))


BROKEN = {
    "unknown key": ("lora_rnak: 4\n", ["x.yaml:1", "lora_rnak", "lora_rank"]),
    "unknown key of a corpus": ("data:\n  a:\n    path_sr: x\n", ["x.yaml:3", "path_src"]),
    "not a number": ("seed: 1\nlearning_rate: 1e-4x\n", ["x.yaml:2", "a number", "1e-4x", "did you mean 1e-4"]),
    "out of range": ("lora_rank: 0\n", ["x.yaml:1", ">= 1", "is 0"]),
    "no such choice": ("optim: adamm\n", ["x.yaml:1", "adamm", "did you mean 'adam"]),
    "no such type of weights": ("\n\nquant_type: bnb_8bits\n", ["x.yaml:3", "did you mean 'bnb_8bit'"]),
    "whole number wanted": ("train_steps: 10.5\n", ["x.yaml:1", "whole number", "10.5"]),
    "not YAML": ("seed: 1\n  heads: 8\n", ["x.yaml:2", "YAML"]),
    "a tab": ("data:\n\ta: 1\n", ["x.yaml:2", "tab"]),
    "two options at odds": ("accum_count: [2, 4]\naccum_steps: [0]\n", ["x.yaml:1", "accum_steps", "same length"]),
    "heads do not divide": ("hidden_size: 100\nheads: 7\n", ["x.yaml:1", "multiple of heads"]),
    "retired": ("copy_attn: true\n", ["x.yaml:1", "copy attention is retired"]),
    "retired encoder": ("encoder_type: brnn\n", ["x.yaml:1", "encoder_type", "no longer supported"]),
    "average attention": ("self_attn_type: average\n", ["x.yaml:1", "must be scaled-dot", "key/value cache"]),
    "two kinds of positions": ("position_encoding: true\nmax_relative_positions: 8\n", ["x.yaml:1", "only one kind"]),
    "features by mlp": ("feat_merge: mlp\n", ["x.yaml:1", "mlp, which is no longer supported"]),
    "not a mapping": ("- a\n- b\n", ["x.yaml", "option: value"]),
    "true or false": ("tensorboard: maybe\n", ["x.yaml:1", "true or false", "maybe"]),
}


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_a_broken_file_gets_one_sentence_with_its_line(case: str, tmp_path: Path) -> None:
    text, expected = BROKEN[case]
    with pytest.raises(ConfigError) as caught:
        train("-config", write(tmp_path, text))
    for part in expected:
        assert part in str(caught.value)


def test_all_mistakes_are_reported_together_in_their_order(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        train("-config", write(tmp_path, "lora_rank: 0\nlearning_rat: 1\noptim: adamm\n"))
    message = str(caught.value)
    assert message.startswith("3 things are wrong")
    assert message.index("lora_rank") < message.index("learning_rat") < message.index("adamm")


def test_a_key_of_another_command_is_a_note(tmp_path: Path) -> None:
    loaded = train("-config", write(tmp_path, "beam_size: 5\nself_attn_type: scaled-dot-flash\n"))
    assert any("onmt_llm_translate" in note for note in loaded.notes)
    assert any("self_attn_type" in note for note in loaded.notes)


ODD = [None, [], {}, [None], [1, [2]], {"a": 1}, {"a": {"b": [{}]}}, {1: 2}, "", "x" * 500, "[", -1.5, True]


@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("command", JOBS)
def test_a_value_of_any_type_is_taken_or_refused_for_every_option(command: str, value: Any, tmp_path: Path) -> None:
    """All options of a command at once, OpenNMT-py's names among them."""
    names = {*options_of(JOBS[command].section, JOBS[command].extra()), *known_names()} - {"plugins"}
    text = yaml.safe_dump(dict.fromkeys(sorted(names), value))
    try:
        load_job(command, ["-config", write(tmp_path, text)])
    except ConfigError as error:
        for line in str(error).splitlines():
            assert "Input should" not in line and "Value error" not in line, line
