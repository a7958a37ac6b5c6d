"""Text generated from the schema: `-print_config`, the option reference, the JSON schemas."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.config.loading.render import json_schema, option_tables, print_config
from onmt_llm.config.plot import PlotConfig
from onmt_llm.config.section import options_of

DATA = Path(__file__).parents[3] / "data"


def test_print_config_can_be_fed_back(tmp_path: Path) -> None:
    loaded = load_job(
        "onmt_llm_train", ["-config", str(DATA / "replicate_vicuna.yaml"), "-response_patterns", "A:｟newline｠"]
    )
    text = print_config(loaded)
    assert "replicate_vicuna.yaml:27" in text and "# default" in text
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    again = load_job("onmt_llm_train", ["-config", str(tmp_path / "x.yaml")])
    assert (again.job, again.options) == (loaded.job, loaded.options)


def test_the_origin_of_each_value_is_printed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("data:\n  a: {path_src: text}\nlr: 0.5\n")
    text = print_config(load_job("onmt_llm_train", ["-config", str(tmp_path / "x.yaml"), "-dropout", "0.2"]))
    lines = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in text.splitlines()}
    assert lines["learning_rate"].endswith("x.yaml:3") and lines["dropout"] == "-dropout"
    assert lines["train_steps"] == "default"
    values = yaml.safe_load(text)
    assert values["corpora"]["data"] == {"a": {"path_src": "text"}}  # what is left to its default is not printed
    assert "src_vocab_size" not in values["architecture"]  # derived, no option
    assert values["regularization"]["dropout"] == [0.2]


@pytest.mark.parametrize("command", JOBS)
def test_the_schema_describes_every_option(command: str) -> None:
    job = JOBS[command]
    properties = json_schema(job.section, job.extra())["properties"]
    assert all(entry.get("description") for entry in properties.values())
    assert set(options_of(job.section, job.extra())) == set(properties)


def test_the_reference_has_a_row_for_each_option() -> None:
    text = option_tables(PlotConfig)
    assert text.count("### curves") == 1
    for name, option in options_of(PlotConfig).items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert option.doc in row and row.replace("\\|", "").count("|") == 5
    assert '| `against` | tokens\\|steps\\|hours | "steps" |' in text


def test_options_of_transforms_may_stand_in_a_corpus() -> None:
    job = JOBS["onmt_llm_train"]
    schema = json_schema(job.section, job.extra())
    assert {"path_src", "weight", "src_prefix"} <= schema["$defs"]["CorpusConfig"]["properties"].keys()
    assert schema["additionalProperties"] is False
