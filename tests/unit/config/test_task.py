"""The task of a new model: one decision for all commands, consistent with what the configuration says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.cli.jobs import load_job
from onmt_llm.config.loading.render import print_config
from onmt_llm.errors import ConfigError

COMMANDS = ("onmt_llm_train", "onmt_llm_data", "onmt_llm_build_vocab")
HOW_TO = Path(__file__).parents[3] / "docs/how-to/vocabulary.md"
PAIRS = "data:\n  a: {path_src: s, path_tgt: t}\n"
TEXT = "data:\n  a: {path_src: s}\n"
CHAT = "data:\n  a: {path_jsonl: j, prompt_key: en, answer_key: de}\n"
# OpenNMT-py 3.5.1: its quickstart, and data/ggnn_data.yaml
TOY_EN_DE = """
save_data: toy-ende/run/example
src_vocab: toy-ende/run/example.vocab.src
tgt_vocab: toy-ende/run/example.vocab.tgt
overwrite: False
data:
    corpus_1:
        path_src: toy-ende/src-train.txt
        path_tgt: toy-ende/tgt-train.txt
    valid:
        path_src: toy-ende/src-val.txt
        path_tgt: toy-ende/tgt-val.txt
world_size: 1
gpu_ranks: [0]
save_model: toy-ende/run/model
save_checkpoint_steps: 500
train_steps: 1000
valid_steps: 500
"""
GGNN_DATA = """
src_vocab: data/ggnnsrcvocab.txt
tgt_vocab: data/ggnntgtvocab.txt
data:
    ggnn:
        path_src: data/ggnnsrc.txt
        path_tgt: data/ggnntgt.txt
"""
OURS = re.findall(r"```yaml\n(.*?)```", HOW_TO.read_text(encoding="utf-8"), flags=re.DOTALL)[0]


def load(tmp_path: Path, text: str, command: str = "onmt_llm_train", *flags: str) -> Any:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return load_job(command, ["-config", str(path), *flags])


TASKS = {
    "OpenNMT-py's quickstart": (TOY_EN_DE, "seq2seq"),
    "OpenNMT-py's ggnn_data.yaml": (GGNN_DATA, "seq2seq"),
    "the YAML of vocabulary.md": (OURS, "seq2seq"),
    "a target side": (PAIRS, "seq2seq"),
    "a target side, and the word for it": (PAIRS + "model_task: lm\n", "lm"),
    "one of several with a target side": (PAIRS + "  b: {path_src: s}\n", "seq2seq"),
    "a target vocabulary": (CHAT + "tgt_vocab: v\n", "seq2seq"),
    "text": (TEXT, "lm"),
    "questions and answers": (CHAT, "lm"),
    "questions and answers, and the word for it": (CHAT + "model_task: seq2seq\n", "seq2seq"),
    "an encoder": (CHAT + "encoder_layers: 2\n", "seq2seq"),
    "no encoder": (TEXT + "encoder_layers: 0\n", "lm"),
    "OpenNMT-py's word for an encoder": (CHAT + "encoder_type: transformer\n", "seq2seq"),
    "OpenNMT-py's word for a language model": (PAIRS + "decoder_type: transformer_lm\n", "lm"),
    "its language model with its encoder": (
        PAIRS + "model_task: lm\nencoder_type: transformer\ndecoder_type: transformer\nenc_layers: 2\nlayers: 4\n",
        "lm",
    ),
    "a pair that judges, and the word for it": (
        TEXT + "  valid: {path_src: s, path_tgt: t}\nmodel_task: lm\n",
        "lm",
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", TASKS)
def test_every_command_decides_alike(case: str, command: str, tmp_path: Path) -> None:
    text, task = TASKS[case]
    assert load(tmp_path, text, command).job.decide_task().task == task


ENCODERS = {
    "as many layers as the decoder": ("decoder_layers: 3\n", (3, 3)),
    "its own": ("decoder_layers: 3\nencoder_layers: 5\n", (5, 3)),
    "its own in OpenNMT-py's words": ("enc_layers: 5\ndec_layers: 3\n", (5, 3)),
    "of both": ("layers: 4\n", (4, 4)),
    "the default": ("", (6, 6)),
    "OpenNMT-py's default with its words": ("encoder_type: transformer\ndecoder_type: transformer\n", (2, 2)),
    "none for a language model": ("model_task: lm\nlayers: 4\n", (0, 4)),
}


@pytest.mark.parametrize("case", ENCODERS)
def test_the_encoder_follows_the_decoder(case: str, tmp_path: Path) -> None:
    text, layers = ENCODERS[case]
    model = load(tmp_path, PAIRS + text).job.resolved().architecture
    assert (model.encoder_layers, model.decoder_layers) == layers


REFUSED = {
    "no encoder for pairs": (PAIRS + "encoder_layers: 0\n", "x.yaml:3", "encoder_layers must be >= 1"),
    "no encoder in OpenNMT-py's words": (PAIRS + "enc_layers: 0\n", "x.yaml:3", "encoder_layers must be >= 1"),
    "translation without an encoder": ("model_task: seq2seq\nencoder_layers: 0\n", "x.yaml:2", "must be >= 1"),
    "a language model with an encoder": ("model_task: lm\nencoder_layers: 2\n", "x.yaml:2", "must be 0"),
    "a decoder of the other kind": (
        "model_task: seq2seq\ndecoder_type: transformer_lm\n",
        "x.yaml:2",
        "must be transformer",
    ),
    "pairs for validation alone": (
        TEXT + "  valid: {path_src: s, path_tgt: t}\n",
        "",
        "model_task must be lm or seq2seq",
    ),
    "no such task": ("model_task: translation\n", "x.yaml:1", "must be one of lm, seq2seq"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case: str, tmp_path: Path) -> None:
    text, where, sentence = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert where in caught.value.message and sentence in caught.value.message
    assert "\n" not in caught.value.message


def test_a_checkpoint_decides_for_itself(tmp_path: Path) -> None:
    for text in ("train_from: somewhere\n", "train_from: auto\ninit_from: somewhere\n"):
        job = load(tmp_path, PAIRS + "encoder_layers: 0\n" + text).job
        assert job.resolved() == job
    with pytest.raises(ConfigError, match="encoder_layers must be >= 1"):
        load(tmp_path, PAIRS + "encoder_layers: 0\ntrain_from: auto\n")


def test_the_printed_configuration_shows_what_was_decided(tmp_path: Path) -> None:
    loaded = load(tmp_path, PAIRS + "decoder_layers: 3\n")
    shown = print_config(loaded)
    values = yaml.safe_load(shown)
    assert (values["start"]["model_task"], values["architecture"]["encoder_layers"]) == ("seq2seq", 3)
    again = load(tmp_path, shown).job
    assert again == loaded.job.resolved() == again.resolved()
