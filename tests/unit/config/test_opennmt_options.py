"""No option of OpenNMT-py 3.5.1 is unknown: each is accepted, noted, or refused with its own sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.config import aliases, foreign
from onmt_llm.config.opennmt import COMMANDS, answer, option_table, read_names
from onmt_llm.config.schema import leaves
from onmt_llm.data.transforms import transform_class
from onmt_llm.errors import ConfigError

NAMES = read_names((Path(__file__).parents[2] / "data/opennmt_options.txt").read_text(encoding="utf-8"))
TABLES = {command: leaves(job.kind, job.extra()) for command, job in JOBS.items()}
PAIRS = [(command, name) for command, names in NAMES.items() for name in names]


def test_the_list_is_whole() -> None:
    assert [len(NAMES[command]) for command in COMMANDS] == [261, 138, 97]


def test_every_name_has_its_answer() -> None:
    unanswered = {name for command, name in PAIRS if answer(command, name, TABLES) is None}
    assert not unanswered


def test_a_name_is_not_both_gone_and_an_option() -> None:
    """What has been built is taken off the lists of what has not."""
    own = {leaf for command in COMMANDS.values() for leaf in TABLES[command]}
    assert not own & {*foreign.IGNORED, *foreign.RETIRED}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_name_loads_or_is_refused_with_its_sentence(command: str, tmp_path: Path) -> None:
    ours = COMMANDS[command]
    for name in sorted(set(NAMES[command]) - {"config"}):
        file = tmp_path / "x.yaml"
        file.write_text(yaml.safe_dump({name: _value(name, ours)}), encoding="utf-8")
        try:
            loaded = load_job(ours, ["-config", str(file)])
        except ConfigError as error:
            assert f"'{name}'" in error.message and "not a known option" not in error.message, error
        else:
            noted = any(f"'{name}'" in note for note in loaded.notes)
            assert noted or name in loaded.origins or str(aliases.answer(name)).startswith("accepted: ")


def _value(name: str, command: str) -> Any:
    """Something to ask for: an option's default, else a value that is not OpenNMT-py's default."""
    own = TABLES[command].get(foreign.RENAMED.get(name, name))
    if own is None and aliases.answer(name) is not None:
        return 8
    leaf = own or next(table[name] for table in TABLES.values() if name in table)
    return leaf.default.model_dump() if hasattr(leaf.default, "model_dump") else leaf.default


def test_what_is_gone_is_refused_only_where_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("rnn_type: LSTM\ncopy_attn: false\n")
    load_job("onmt_llm_train", ["-config", str(file)])
    file.write_text("rnn_type: GRU\n")
    with pytest.raises(ConfigError, match="RNN models are retired"):
        load_job("onmt_llm_train", ["-config", str(file)])


ITS_TRANSFORMS = """
    sentencepiece bpe onmt_tokenize filtertoolong prefix suffix insert_mask_before_placeholder docify clean normalize
    uppercase switchout tokendrop tokenmask bart fuzzymatch inlinetags terminology inferfeats
"""


@pytest.mark.parametrize("name", ITS_TRANSFORMS.split())
def test_all_its_transforms_are_there(name: str) -> None:
    assert transform_class(name).name == name


@pytest.mark.parametrize(
    "name", ["sgd", "adagrad", "adadelta", "adam", "adafactor", "fusedadam", "adamw8bit", "sparseadam"]
)
def test_its_optimisers_are_accepted_by_their_names(name: str) -> None:
    if name == "sparseadam":
        with pytest.raises(ConfigError, match=r"sparseadam, which is gone: .* use adamw"):
            load_job("onmt_llm_train", ["-optim", name])
    else:
        loaded = load_job("onmt_llm_train", ["-optim", name, "-adagrad_accumulator_init", "0.1"])
        assert loaded.job.optimizer.optim == name and loaded.job.optimizer.adagrad_accumulator_init == 0.1


def test_sizes_that_rnns_had_apart_are_one(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("src_word_vec_size: 64\nenc_hid_size: 64\ndec_hid_size: 500\nword_vec_size: -1\nlayers: -1\n")
    job = load_job("onmt_llm_train", ["-config", str(file)]).job
    assert job.architecture.hidden_size == 64 and job.architecture.encoder_layers == 0
    file.write_text("hidden_size: 32\ntgt_word_vec_size: 64\n")
    with pytest.raises(ConfigError, match=r"'tgt_word_vec_size' must equal hidden_size \(32\), but is 64"):
        load_job("onmt_llm_train", ["-config", str(file)])


def test_the_table_has_a_row_for_each() -> None:
    text = option_table(NAMES, TABLES)
    assert all(f"| `{name}` | " in text for _, name in PAIRS)
