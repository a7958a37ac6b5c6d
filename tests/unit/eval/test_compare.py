"""`onmt_llm_eval compare`: two models' answers side by side; and the options of the other actions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny
from onmt_llm.cli.eval import main as evaluate

VOCAB = tiny.tokens(24)


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    return [str(tiny.write_checkpoint(tmp_path / f"m{seed}", tiny.llama(), VOCAB, seed=seed)) for seed in (0, 1)]


def test_the_page_shows_both_answers_with_marks_and_figures(
    models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "src").write_text("w1 w2\n<script>alert(1)</script>\n\n")
    (tmp_path / "ref").write_text("w3 w4\nw5\nw6\n")
    page = tmp_path / "page.html"
    argv = ["-src", str(tmp_path / "src"), "-tgt", str(tmp_path / "ref"), "-output", str(page), "-max_length", "6"]
    assert evaluate(["compare", *models, *argv, "-metrics", "BLEU", "EXACT_MATCH"]) == 0
    html = page.read_text()
    assert html.count('class="pair"') == 3 and all(model in html for model in models)
    assert '<mark class="gone">' in html and '<mark class="added">' in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "<script>alert" not in html
    assert "1 answers are identical, 2 differ" in html, "an empty prompt has empty answers"
    assert re.search(r"<th>BLEU</th><th>EXACT_MATCH</th>", html) and "chrF" in html
    assert not re.search(r'(src|href)="', html), "the page needs no other file"
    said = capsys.readouterr().out
    assert all(f"{model}\t" in said for model in models) and "tokens/s" in said


CASES = {
    "one model": (["compare", "MODEL", "-src", "SRC", "-output", "x.html"], "'models' must be two different models"),
    "one model twice": (["compare", "MODEL", "MODEL/", "-src", "SRC", "-output", "x.html"], "two different models"),
    "one system twice": (["score", "-hyp", "SRC", "SRC", "-tgt", "SRC"], "'hyp' must name each file once"),
    "lines": (
        ["score", "-model", "MODEL", "-src", "SRC", "-tgt", "OTHER_TEXT"],
        "as many lines as 'src', 1, but has 2",
    ),
    "no output": (["compare", "MODEL", "OTHER", "-src", "SRC"], "'output' must be given"),
    "no tasks": (["tasks", "-model", "MODEL"], "'tasks' must be given"),
    "no name": (["tasks", "-tasks", ",", "-model", "MODEL"], "'tasks' must be given"),
    "watched model": (["tasks", "-tasks", "x", "-model", "MODEL", "-watch", "9"], "'watch' needs 'save_model'"),
    "model and run": (["tasks", "-tasks", "x", "-model", "MODEL", "-save_model", "m"], "but both are"),
    "no model": (["tasks", "-tasks", "x"], "but neither is"),
    "no references": (["score", "-hyp", "SRC"], "'tgt' must be given"),
    "no answers": (["score", "-tgt", "SRC"], "'model' must be given"),
    "unknown metric": (["score", "-hyp", "SRC", "-tgt", "SRC", "-metrics", "BLUE"], "'BLUE' is not a known metric"),
    "lengths": (["score", "-hyp", "SRC", "-tgt", "OTHER_TEXT"], "as many answers as there are references, 2"),
    "comet": (
        ["score", "-hyp", "SRC", "-tgt", "SRC", "-src", "SRC", "-metrics", "comet"],
        "needs the package 'unbabel-comet'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_missing_is_told(
    case: str, models: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, sentence = CASES[case]
    (tmp_path / "src").write_text("w1\n")
    (tmp_path / "text").write_text("w1\nw2\n")
    places = {
        "MODEL": models[0],
        "MODEL/": f"{models[0]}/",
        "OTHER": models[1],
        "SRC": str(tmp_path / "src"),
        "OTHER_TEXT": str(tmp_path / "text"),
    }
    assert evaluate([places.get(word, word) for word in argv]) in (1, 2, 3)
    assert sentence in capsys.readouterr().err
