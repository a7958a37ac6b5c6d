"""Names of other toolkits, translated before anything is validated."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.compat.names import IGNORED, OF_EARLIER_VERSIONS, RENAMED, RETIRED, RETIRED_DEFAULTS
from onmt_llm.config.compat.sharding import SHARDING
from onmt_llm.config.compat.translate import describe, effective_names, inert_names, known_names, translate
from onmt_llm.config.compat.values import TRANSLATORS


def test_a_name_is_in_one_table_only() -> None:
    tables = [RENAMED, IGNORED, RETIRED, TRANSLATORS, SHARDING]
    assert sum(map(len, tables)) == len(known_names()) == len(effective_names()) + len(inert_names())


def test_a_renamed_option_keeps_its_value_and_its_source() -> None:
    translated = translate({"lora_r": 8, "seed": 1})
    assert translated.values == {"lora_rank": 8, "seed": 1}
    assert translated.sources == {"lora_rank": "lora_r", "seed": "seed"}


def test_an_ignored_option_is_a_note() -> None:
    translated = translate({"master_ip": "localhost"})
    assert not translated.values and not translated.errors
    assert translated.notes == [("master_ip", "'master_ip' has no effect: torchrun sets the address.")]


@pytest.mark.parametrize("value", [None, False, 0, "", "none"])
def test_a_retired_option_may_be_off(value: Any) -> None:
    assert translate({"copy_attn": value}) == translate({})
    assert translate(dict(RETIRED_DEFAULTS)) == translate({})


def test_a_retired_option_that_is_on_is_an_error() -> None:
    ((key, sentence),) = translate({"rnn_type": "GRU"}).errors
    assert key == "rnn_type" and "no longer supported: RNN models are retired" in sentence


def test_an_option_of_the_job_is_never_taken_for_another_one() -> None:
    """`fp32` is retired in OpenNMT-py, but an option of `onmt_llm_checkpoint`."""
    assert translate({"fp32": True}, {"fp32"}).values == {"fp32": True}
    assert translate({"fp32": True}).errors


def test_our_names_take_precedence_whatever_the_order() -> None:
    for written in ({"layers": 4, "decoder_layers": 2}, {"decoder_layers": 2, "layers": 4}):
        assert translate(written).values == {"decoder_layers": 2, "encoder_layers": 4}


def test_null_is_the_default() -> None:
    assert translate({"layers": None, "num_experts": None}) == translate({})


def test_every_known_name_is_described() -> None:
    assert all(describe(name) for name in known_names())
    assert describe("lora_rank") is None


def test_options_of_earlier_versions_of_opennmt_are_known() -> None:
    assert set(OF_EARLIER_VERSIONS) <= known_names()
    old = {"pool_factor": 8192, "queue_size": 10000, "max_generator_batches": 2, "fix_word_vecs_enc": True}
    translated = translate({**old, "max_sent_length": 9, "lower": False, "gpuid": [], "src_noise": []})
    assert translated.values == {"freeze_word_vecs_enc": True, "max_length": 9} and not translated.errors
    assert [key for key, _ in translated.notes] == ["pool_factor", "queue_size", "max_generator_batches"]
    on = {"lower": True, "gpuid": [1], "data_to_noise": ["a"], "src_noise": ["mask"], "src_noise_prob": [0.1]}
    assert [key for key, _ in translate(on).errors] == list(on)


@pytest.mark.parametrize(("key", "value", "part"), [("data", "data/demo", "corpus_1"), ("tgt_prefix", True, "file")])
def test_values_of_a_former_kind_are_explained(key: str, value: Any, part: str) -> None:
    ((place, sentence),) = translate({key: value}, {key}).errors
    assert place == key and part in sentence


def test_the_flags_of_its_server_are_known() -> None:
    assert translate({"ip": "0.0.0.0"}, {"host"}).values == {"host": "0.0.0.0"}
    ((key, sentence),) = translate({"model_config": "conf.json"}).errors
    assert key == "model_config" and "-config" in sentence
