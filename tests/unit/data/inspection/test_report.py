"""Corpus statistics: exact sums, lengths, and the report as table, JSON and HTML page."""

from __future__ import annotations

import json
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from onmt_llm.cli.data import main
from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data import pipeline
from onmt_llm.data.example import IGNORED, Encoded
from onmt_llm.data.inspection.histograms import histogram
from onmt_llm.data.inspection.html import report_page
from onmt_llm.data.inspection.report import measure, mixture, table, to_json
from onmt_llm.data.statistics import CorpusCounts, length_bin, percentile
from onmt_llm.data.transforms.filters import FilterTooLongConfig
from onmt_llm.errors import ConfigError
from tiny_codecs import make_codec, make_spec


def test_lengths_are_exact_below_64_and_within_3_percent_above():
    assert [length_bin(length) for length in range(65)] == list(range(65))
    for length in (65, 100, 1000, 4097, 123_456):
        assert length * 0.97 < length_bin(length) <= length
    assert len({length_bin(length) for length in range(1 << 17)}) < 500


def test_percentiles_are_numpys_but_for_rounding():
    draw = random.Random(3)
    lengths = [int(draw.lognormvariate(4, 1)) for _ in range(5000)]
    counted = Counter(map(length_bin, lengths))
    for share in (0.1, 0.5, 0.9, 0.99):
        exact = float(np.percentile(lengths, 100 * share, method="inverted_cdf"))
        assert 0.96 * exact <= percentile(counted, share) <= exact
    assert percentile(Counter(), 0.5) == 0


def test_counts_survive_json_and_add_up():
    ids = np.arange(5, dtype=np.int32)
    counts = CorpusCounts(read=3, dropped=Counter(empty=2), truncated=1)
    counts.keep(Encoded(ids, ids, np.array([IGNORED, 1, 2, 3, 4], dtype=np.int32), unknown=1), 4)
    again = CorpusCounts.from_dict(json.loads(json.dumps(counts.to_dict())))
    assert again == counts and counts.tokens == 10 and counts.lengths == counts.src_lengths == {5: 1}
    again.add(counts)
    assert (again.read, again.kept, again.dropped, again.truncated, again.trained) == (6, 2, {"empty": 4}, 2, 8)
    assert again.lengths == {5: 2}


def test_counts_saved_by_an_older_version_are_read():
    old = {"read": 2, "kept": 1, "dropped": {"empty": 1}, "tokens": 5, "trained": 5, "unknown": 0}
    assert CorpusCounts.from_dict(old).lengths == {}


@pytest.fixture
def reports(vocab, write, words):
    def make(**overrides):
        corpora = {
            "x": CorpusConfig(path_src=write("x", words(300, 1) + "\n\n"), weight=3),
            "y": CorpusConfig(path_src=write("y", "a zebra <b>\n" * 10)),
            "valid": CorpusConfig(path_src=write("v", words(20, 2))),
        }
        data = DataConfig(transforms=["filtertoolong"], skip_empty_level="silent")
        options = {"filtertoolong": FilterTooLongConfig(src_seq_length=10)}
        return measure(make_spec(corpora, make_codec("lm", vocab), data, options=options), **overrides)

    return make


def test_read_is_kept_and_dropped_whatever_the_number_of_processes(reports):
    one, two = reports(), reports(processes=2)
    assert [report.counts for report in one] == [report.counts for report in two]
    x, y, valid = one
    assert x.counts.read == 302 == x.counts.kept + x.counts.dropped.total()
    assert x.counts.dropped["empty"] == 2 and x.counts.dropped["too_long"] > 0
    assert sum(x.counts.lengths.values()) == x.counts.kept and max(x.counts.lengths) == 9
    assert (y.counts.unknown, y.counts.tokens, valid.weight) == (20, 40, 0)


def test_the_mixture_follows_weights_and_lengths(reports):
    x, y, _ = reports()
    shares = mixture(reports())
    assert shares.examples == {"x": 0.75, "y": 0.25}
    per_record = 3 * x.counts.tokens / 302, y.counts.tokens / 10
    assert shares.tokens["x"] == pytest.approx(per_record[0] / sum(per_record))


def test_the_table_has_a_line_for_every_corpus_and_reason(reports):
    lines = table(reports(n_sample=5)).splitlines()
    assert [line.split()[:2] for line in lines if not line.startswith("  ")][1:] == [
        ["x", "5"],
        ["y", "5"],
        ["valid", "5"],
    ]


def test_the_page_needs_no_network_and_escapes_what_it_shows(reports):
    page = report_page(reports(), mixture(reports()), title="<script>alert(1)</script>", about="a & b")
    assert "<script>alert" not in page and "a &amp; b" in page
    assert "http://" not in page and "https://" not in page and "<svg" in page
    assert "More than 1% of the tokens are unknown" in page


def test_a_histogram_holds_every_example_once():
    lengths = Counter(length_bin(length) for length in range(1, 3000))
    plot = histogram(lengths)
    told = [int(column.label.split(": ")[1].split()[0].replace(",", "")) for column in plot.columns]
    assert sum(told) == 2999 and len(plot.columns) <= 40
    assert max(told) == told[1] == told[-2], "bins straddle columns"


def test_the_command_writes_json_and_a_page(write, words, tmp_path, capsys):
    vocab = write("vocab", "".join(f"{token}\n" for token in ["<unk>", "<blank>", "<s>", "</s>", *"abcdefgh"]))
    config = write(
        "x.yaml",
        f"data: {{web: {{path_src: {write('web', words(30, 1))}}}}}\nsrc_vocab: {vocab}\nshare_vocab: true\n"
        f"decoder_layers: 1\nencoder_layers: 0\nhidden_size: 8\nsave_data: {tmp_path / 'out'}\n",
    )
    assert main(["report", "-config", config]) == 0
    found = json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))
    assert found["corpora"]["web"]["read"] == found["corpora"]["web"]["kept"] == 30
    assert "web" in capsys.readouterr().out and (tmp_path / "out/report.html").is_file()
    assert main(["report", "-config", config]) == ConfigError.exit_code
    assert main(["report", "-config", config, "-overwrite", "-n_sample", "3"]) == 0
    assert json.loads((tmp_path / "out/report.json").read_text(encoding="utf-8"))["corpora"]["web"]["read"] == 3


def test_the_report_of_a_report_is_plain_data(reports):
    assert json.loads(json.dumps(to_json(reports(), mixture(reports()))))["corpora"]["valid"]["weight"] == 0


@pytest.mark.parametrize("lengths", [[50, 51, 57, 59], [5], [1, 4000], [4000, 4100], range(900, 1000), [70_000] * 9])
def test_a_histogram_is_where_the_data_is_and_cuts_no_label(lengths):
    plot = histogram(Counter(length_bin(length) for length in lengths))
    assert plot.columns[0].x == min(column.x for column in plot.columns) < 60
    assert all(column.x + column.width <= plot.width - 20 for column in plot.columns)
    letter = 7  # no digit of 11 pixels is wider
    for mark in plot.percentiles:
        edge = mark.x - 4 - letter * len(mark.label) if mark.before else mark.x + 4 + letter * len(mark.label)
        assert 0 <= edge <= plot.width
    for tick in plot.ticks:
        assert tick.x + letter * len(tick.label) / 2 <= plot.width


def test_epochs_take_a_line_a_minute(caplog, monkeypatch):
    caplog.set_level("INFO", logger="onmt_llm")
    now = [0.0]
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: now[0]))
    log = pipeline.EpochLog()
    for second in range(150):
        now[0] = float(second)
        log.begun("a", 2 * second)
        log.begun("b", second)
    assert [record.message for record in caplog.records] == [
        "Epoch 0 of corpus 'a'.",
        "Epoch 59 of corpus 'b', 120 of corpus 'a'.",
        "Epoch 119 of corpus 'b', 240 of corpus 'a'.",
    ]
