"""Examples traced through the transforms, and the HTML page that shows them."""

from __future__ import annotations

import html
import re

import pytest
from chat_page import CHROMIUM

from onmt_llm.cli.data import main
from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.inspection.diff import compare, compare_texts
from onmt_llm.data.inspection.html import samples_page
from onmt_llm.data.inspection.trace import collect
from onmt_llm.data.transforms.affix import PrefixConfig
from onmt_llm.data.transforms.filters import FilterTooLongConfig
from tiny_codecs import make_codec, make_spec

ATTACK = "</span></script><script>alert('x')</script><img src=x onerror=alert(1)>"


@pytest.fixture
def follow(vocab):
    def run(corpora, number=20, task="lm", **data):
        options = {"filtertoolong": FilterTooLongConfig(src_seq_length=6), "prefix": PrefixConfig(src_prefix="h h")}
        spec = make_spec(corpora, make_codec(task, vocab), DataConfig(**data), options=options)
        return collect(spec, number=number)

    return run


def test_an_example_is_seen_behind_every_transform(follow, write):
    corpora = {"x": CorpusConfig(path_src=write("x", "a zebra\n"), transforms=["prefix", "filtertoolong"])}
    ((trace,),) = [traces.found for traces in follow(corpora)]
    assert [stage.name for stage in trace.stages] == ["read", "prefix", "tokenize", "filtertoolong"]
    read, prefix, tokenize, _ = (stage.sides[0][0] for stage in trace.stages)
    assert (read.text, prefix.text, tokenize.tokens) == ("a zebra", "h h a zebra", ("h", "h", "a", "zebra"))
    seen = [(token.text, token.trained, token.unknown) for token in trace.tgt]
    assert seen[0] == ("<s>", False, False) and seen[4] == ("<unk>", True, True) and seen[5] == ("</s>", True, False)


def test_joined_and_doubled_examples_are_followed_together(follow, write):
    lines = "a b\nc\na b\nd\n"
    copies = {"x": CorpusConfig(path_src=write("x", lines), transforms=["deduplicate"])}
    assert [trace.outcome for trace in follow(copies)[0].found] == ["kept", "kept", "duplicate", "kept"]
    joined = {"x": CorpusConfig(path_src=write("s", lines), path_tgt=write("t", lines), transforms=["docify"])}
    found = follow(joined, task="seq2seq")[0].found
    # a document of a line and one line of context
    assert [trace.outcome for trace in found] == ["kept", "merged"] * 2
    assert [token.text for token in found[0].src] == ["a", "b", "｟newline｠", "c"] and found[2].line == 3


def test_dropped_examples_say_where_and_why(follow, write):
    corpora = {"x": CorpusConfig(path_src=write("x", "a b\n\na a a a a a a\nb\n"), transforms=["filtertoolong"])}
    (traces,) = follow(corpora)
    assert [(trace.line, trace.outcome) for trace in traces.found] == [
        *((1, "kept"), (2, "empty"), (3, "too_long"), (4, "kept"))
    ]
    assert traces.found[2].stages[-1].name == "filtertoolong" and not traces.found[2].stages[-1].sides
    assert traces.looked_at == 4


def test_as_many_as_asked_for_of_each_outcome(follow, write):
    lines = "a b\n" * 40 + "a a a a a a a a\n" * 40
    (traces,) = follow({"x": CorpusConfig(path_src=write("x", lines), transforms=["filtertoolong"])}, number=3)
    assert [trace.outcome for trace in traces.found] == ["kept"] * 3


def test_prompts_are_shown_untrained_and_pairs_on_two_sides(follow, write):
    prompts = CorpusConfig(path_jsonl=write("p", '{"prompt": "a b", "answer": "c d"}\n'), template="alpaca")
    ((trace,),) = [traces.found for traces in follow({"x": prompts})]
    assert [token.text for token in trace.tgt if token.trained] == ["c", "d", "</s>"]
    pair = CorpusConfig(path_src=write("s", "a b\n"), path_tgt=write("t", "c\n"))
    ((trace,),) = [traces.found for traces in follow({"x": pair}, task="seq2seq")]
    assert [token.text for token in trace.src] == ["a", "b"] and len(trace.stages[0].sides) == 2


def test_nothing_of_a_corpus_is_markup(follow, write):
    (traces,) = follow({f"x{ATTACK}": CorpusConfig(path_src=write("x", f"a {ATTACK}\n"))})
    page = samples_page([traces], title="t", about="a")
    assert page.count("<script") == 1 and "<img" not in page
    assert html.escape(ATTACK, quote=False)[:30] in page
    assert "http:" not in page and "https:" not in page


def test_differences_lead_from_the_old_text_to_the_new():
    old, new = "The  cat sat on the mat.", "One cat sat still on a mat!"
    stretches = compare_texts(old, new)
    assert "".join(text for kind, text in stretches if kind != "gone") == new
    assert "".join(text for kind, text in stretches if kind != "added") == old
    assert ("same", "cat") in [(kind, text.strip()) for kind, text in compare_texts("a cat", "cat")]
    big = compare(["x"] * 3000 + ["y"], ["z"] * 3000)
    assert [stretch.kind for stretch in big] == ["gone", "added"]


def test_the_command_writes_a_page(write, words, tmp_path):
    vocab = write("vocab", "".join(f"{token}\n" for token in ["<unk>", "<blank>", "<s>", "</s>", *"abcdefgh"]))
    config = write(
        "x.yaml",
        f"data: {{web: {{path_src: {write('web', words(30, 1))}}}, valid: {{path_src: {write('v', words(3, 1))}}}}}\n"
        f"src_vocab: {vocab}\nshare_vocab: true\ndecoder_layers: 1\nencoder_layers: 0\nhidden_size: 8\n"
        f"save_data: {tmp_path / 'out'}\n",
    )
    assert main(["sample", "-config", config, "-n_sample", "4"]) == 0
    page = (tmp_path / "out/samples.html").read_text(encoding="utf-8")
    assert re.findall(r'data-corpus="(\w+)"', page) == ["web"] * 4 + ["valid"] * 3
    assert main(["sample", "-config", config]) == 2


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
def test_filters_in_a_browser(follow, write, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    lines = "a b\na a a a a a a\nc d\n" + f"{ATTACK}\n"
    traces = follow({"x": CorpusConfig(path_src=write("x", lines)), "y": CorpusConfig(path_src=write("y", "a g\n"))},
                    transforms=["filtertoolong"])  # fmt: skip
    file = tmp_path / "page.html"
    file.write_text(samples_page(traces, title="t", about="a"), encoding="utf-8")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        alerts: list[str] = []
        page.on("dialog", lambda dialog: (alerts.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        shown = lambda: page.locator("article:visible").count()  # noqa: E731
        assert page.locator("#shown").inner_text() == "5 of 5 shown"
        page.select_option("#corpus", "y")
        assert shown() == 1
        page.select_option("#corpus", "")
        page.select_option("#outcome", "too_long")
        assert shown() == 1
        page.select_option("#outcome", "")
        page.fill("#search", "C D")
        assert shown() == 1
        browser.close()
        assert not alerts
