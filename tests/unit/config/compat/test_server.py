"""The `conf.json` of OpenNMT-py's server, in our options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.cli.jobs import load_job
from onmt_llm.config.compat.server import search_options
from onmt_llm.config.compat.translate import translate
from onmt_llm.errors import ConfigError, OnmtLlmError
from tests.tiny import seq2seq, write_checkpoint


def served(tmp_path: Path, *models: dict[str, Any], **top: Any) -> tuple[dict[str, Any], list[str]]:
    file = tmp_path / "conf.json"
    file.write_text(json.dumps({**top, "models": list(models)}))
    loaded = load_job("onmt_llm_serve", ["-config", str(file)])
    return loaded.job.serving.models, loaded.notes


def only(tmp_path: Path, **entry: Any) -> Any:
    models, _ = served(tmp_path, {"model": "m", **entry})
    return models["0"]


def test_names_and_paths(tmp_path: Path) -> None:
    entries = [{"model": "a"}, {"id": 5, "models": ["b"]}, {"model": "c", "model_root": "/other"}]
    models, _ = served(tmp_path, *entries, {"model": "c.pt", "ct2_model": "c_ct2"}, models_root="/models")
    paths = {name: model.model for name, model in models.items()}
    assert paths == {"0": "/models/a", "5": "/models/b", "1": "/other/c", "2": "/models/c_ct2"}
    models, _ = served(tmp_path, {"model": "a"})
    assert models["0"].model == "./available_models/a"


def test_options(tmp_path: Path) -> None:
    model = only(
        tmp_path, opt={"gpu": -1, "n_best": 2, "min_length": 3, "seed": 4, "batch_size": 8, "replace_unk": True}
    )
    search = model.generation
    assert (search.beam_size, search.max_length, search.n_best, search.min_length) == (5, 250, 2, 3)
    assert search.replace_unk and search.seed == 4
    assert (model.engine.device, model.engine.batch_size) == ("cpu", 8)
    assert only(tmp_path, opt={"random_sampling_topk": 10}).generation.beam_size == 1
    sampled = only(tmp_path, opt={"random_sampling_topp": 0.9, "beam_size": 5}).generation
    assert (sampled.beam_size, sampled.random_sampling_topk) == (1, -1)
    assert only(tmp_path, opt={"random_sampling_topk": 0, "beam_size": 1}).generation.random_sampling_topk == 1
    assert only(tmp_path, opt={"tgt_file_prefix": True}).tgt_file_prefix


def test_options_of_ctranslate2(tmp_path: Path) -> None:
    model = only(
        tmp_path,
        ct2_model="m_ct2",
        ct2_translator_args={"intra_threads": 3, "inter_threads": 2, "compute_type": "int8"},
        ct2_translate_batch_args={"beam_size": 3, "num_hypotheses": 2, "no_repeat_ngram_size": 4, "max_batch_size": 9},
    )
    assert (model.engine.threads, model.engine.compute_type) == (3, "int8")
    assert (model.generation.beam_size, model.generation.n_best, model.generation.block_ngram_repeat) == (3, 2, 4)


def test_times(tmp_path: Path) -> None:
    assert only(tmp_path).idle_unload_seconds is None and not only(tmp_path).load_at_start
    models, notes = served(tmp_path, {"model": "m", "timeout": 60, "load": True})
    assert models["0"].idle_unload_seconds == 60 and models["0"].load_at_start
    assert any("'on_timeout'" in note for note in notes)


@pytest.mark.parametrize(
    ("tokenizer", "kind"),
    [
        ({"type": "sentencepiece", "model": "spm"}, "sentencepiece"),
        ({"type": "pyonmttok", "mode": "aggressive", "params": {}}, "onmt_tokenize"),
        ({"type": "pyonmttok", "mode": "space", "params": {"bpe_model_path": "bpe"}}, "onmt_tokenize"),
        ({"type": "pyonmttok", "mode": "space", "params": {}}, None),
        ({"src": {"type": "sentencepiece"}, "tgt": {"type": "pyonmttok", "mode": "aggressive"}}, "onmt_tokenize"),
    ],
)
def test_tokenizers(tmp_path: Path, tokenizer: dict[str, Any], kind: str | None) -> None:
    assert only(tmp_path, tokenizer=tokenizer).expected_tokenizer == kind


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"preprocess": ["a.b"]}, "'preprocess' of model 0 must be left out: functions of other modules"),
        ({"postprocess": ["a.b"]}, "'postprocess' of model 0"),
        ({"features": {"n_src_feats": 1}}, "'features' of model 0"),
        ({"custom_opt": {}}, "'custom_opt' of model 0"),
        ({"colour": 1}, "'colour' of model 0 must be left out: OpenNMT-py's server has no such key"),
        ({"model": None}, "'model' of model 0 must name a model"),
        ({"models": ["a", "b"]}, "'models' of model 0 must have one entry"),
        ({"tokenizer": {"type": "moses"}}, "'tokenizer.type' of model 0 must be sentencepiece or pyonmttok"),
        ({"opt": {"beam_sise": 3}}, "'opt.beam_sise' of model 0"),
        ({"opt": {"src": "file"}}, "'opt.src' of model 0"),
        ({"opt": {"dump_beam": "x"}}, "Model 0: 'dump_beam' is an option of OpenNMT-py"),
        ({"opt": {"beam_size": 0}}, "models.0.generation.beam_size"),
        ({"ct2_translator_args": {"tensor_parallel": True}}, "'ct2_translator_args.tensor_parallel' of model 0"),
        ({"ct2_translate_batch_args": {"prefix_bias_beta": 1}}, "'ct2_translate_batch_args.prefix_bias_beta'"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        only(tmp_path, **entry)
    assert message in str(error.value)


def test_two_models_with_one_id(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two have 3"):
        served(tmp_path, {"id": 3, "model": "a"}, {"id": 3, "model": "b"})


def test_a_model_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from onmt_llm.cli.serve import open_app

    write_checkpoint(tmp_path / "available_models/m", seq2seq())
    conf = {"models": [{"model": "m", "tokenizer": {"type": "sentencepiece", "model": "spm"}}]}
    conf["models_root"] = str(tmp_path / "available_models")  # type: ignore[assignment]
    (tmp_path / "conf.json").write_text(json.dumps(conf))
    with pytest.raises(OnmtLlmError, match="must be of kind sentencepiece, but is of kind whitespace") as error:
        open_app(str(tmp_path / "conf.json"))
    assert "-tokenizer_model" in str(error.value)


def test_lists_of_models_of_other_commands_stay() -> None:
    loaded = load_job("onmt_llm_checkpoint", ["-models", "a", "b", "-output", "c"])
    assert loaded.job.checkpoint.models == ["a", "b"]


def test_options_of_a_clone() -> None:
    assert search_options({"beam_size": 2}, translate) == {"beam_size": 2, "max_length": 250}
    with pytest.raises(ConfigError, match=r"opt\.beam_sise"):
        search_options({"beam_sise": 2}, translate)
