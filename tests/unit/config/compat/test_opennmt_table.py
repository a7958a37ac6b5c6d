"""Every option of OpenNMT-py 3.5.1 is known: accepted, noted, or refused with a sentence of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.config.compat.names import IGNORED, RENAMED, RETIRED
from onmt_llm.config.compat.opennmt_defaults import DIFFERENT, DIFFERENT_AT_INFERENCE
from onmt_llm.config.compat.opennmt_table import (
    COMMANDS,
    default_here,
    option_support,
    option_table,
    read_options,
    same_default,
)
from onmt_llm.config.compat.translate import describe
from onmt_llm.config.section import options_of
from onmt_llm.data.transforms.transform import TRANSFORMS
from onmt_llm.errors import ConfigError

NAMES = read_options((Path(__file__).parents[3] / "data/opennmt_options.txt").read_text(encoding="utf-8"))
TABLES = {command: options_of(job.section, job.extra()) for command, job in JOBS.items()}
PAIRS = [(command, name) for command, names in NAMES.items() for name in names]


def test_the_list_is_whole() -> None:
    assert [len(NAMES[command]) for command in COMMANDS] == [261, 138, 97]


def test_every_name_has_its_answer() -> None:
    unanswered = {name for command, name in PAIRS if option_support(command, name, TABLES) is None}
    assert not unanswered


def test_a_name_is_not_both_gone_and_an_option() -> None:
    """What has been built is taken off the lists of what has not."""
    own = {option for command in COMMANDS.values() for option in TABLES[command]}
    assert not own & {*IGNORED, *RETIRED}


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
            assert noted or name in loaded.origins or str(describe(name)).startswith("accepted: ")


def _value(name: str, command: str) -> Any:
    """Something to ask for: an option's default, else a value that is not OpenNMT-py's default."""
    own = TABLES[command].get(RENAMED.get(name, name))
    if own is None and describe(name) is not None:
        return 8
    option = own or next(table[name] for table in TABLES.values() if name in table)
    return option.default.model_dump() if hasattr(option.default, "model_dump") else option.default


ITS_TRANSFORMS = """
    sentencepiece bpe onmt_tokenize filtertoolong prefix suffix insert_mask_before_placeholder docify clean normalize
    uppercase switchout tokendrop tokenmask bart fuzzymatch inlinetags terminology inferfeats
"""


@pytest.mark.parametrize("name", ITS_TRANSFORMS.split())
def test_all_its_transforms_are_there(name: str) -> None:
    assert TRANSFORMS.get(name).name == name


@pytest.mark.parametrize(
    "name", ["sgd", "adagrad", "adadelta", "adam", "adafactor", "fusedadam", "adamw8bit", "sparseadam"]
)
def test_its_optimisers_are_accepted_by_their_names(name: str) -> None:
    if name == "sparseadam":
        with pytest.raises(ConfigError, match=r"sparseadam, which is no longer supported: .* use adamw"):
            load_job("onmt_llm_train", ["-optim", name])
    else:
        loaded = load_job("onmt_llm_train", ["-optim", name, "-adagrad_accumulator_init", "0.1"])
        assert loaded.job.optimizer.optim == name and loaded.job.optimizer.adagrad_accumulator_init == 0.1


def test_the_table_has_a_row_for_each() -> None:
    text = option_table(NAMES, TABLES)
    assert all(f"| `{name}` | " in text for _, name in PAIRS)


CHANGES_NO_MODEL = {"hidden_size", "num_workers", "prefetch_factor", "response_patterns", "tensorboard_log_dir"}


def test_every_default_that_differs_is_known() -> None:
    """The table at run time is that of the documentation: whole, and with OpenNMT-py's own values."""
    own, theirs = TABLES["onmt_llm_train"], NAMES["onmt_train"]
    found = {name: default_here(name, own) for name in theirs}
    differing = {name for name, here in found.items() if here is not None and not same_default(theirs[name], here)}
    assert differing - CHANGES_NO_MODEL <= {*DIFFERENT}
    # its code reads an empty early_stopping_criteria as these two, and has no option for the decay of bitsandbytes
    assert {name: default for name, (default, _) in DIFFERENT.items()} == {
        **{name: theirs[name] for name in DIFFERENT if name != "weight_decay"},
        "early_stopping_criteria": ["ppl", "accuracy"],
        "weight_decay": 0.01,
    }
    translation = NAMES["onmt_translate"]
    assert {name: translation[name] for name in DIFFERENT_AT_INFERENCE} == DIFFERENT_AT_INFERENCE
