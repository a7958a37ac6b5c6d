"""The recipes: the section "On a CPU" of each README runs as written, and its figures are reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fake_hub
import pytest
from pages import ROOT, Reader, blocks_of, follow

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("transformers")
pytest.importorskip("ctranslate2")

HEADING = "## On a CPU"


def bleu(hypothesis: Path, reference: Path) -> float:
    texts = [file.read_text(encoding="utf-8").splitlines() for file in (hypothesis, reference)]
    return float(sacrebleu.corpus_bleu(texts[0], [texts[1]]).score)


def check_nllb(folder: Path) -> None:
    """The new pair is learned, and the old one kept; both engines agree."""
    toy = folder / "toy"
    assert bleu(toy / "before.deu", toy / "test.german.tgt") < 5
    for engine in ("torch", "ct2"):
        assert bleu(toy / f"{engine}.deu", toy / "test.german.tgt") > 95
    assert bleu(toy / "ct2.fra", toy / "test.french.tgt") > 95


def check_wmt(folder: Path) -> None:
    """Most of the numbers are translated without any mistake."""
    texts = [(folder / "numbers" / name).read_text().splitlines() for name in ("test.out", "test.words")]
    assert sum(one == other for one, other in zip(*texts, strict=True)) > 0.9 * len(texts[0])


RECIPES: dict[str, Callable[[Path], None]] = {
    "nllb_finetune": check_nllb,
    "replicate_vicuna": lambda folder: None,
    "wmt_seq2seq": check_wmt,
}


def page(recipe: str) -> str:
    return (ROOT / "recipes" / recipe / "README.md").read_text(encoding="utf-8")


def test_every_recipe_that_runs_on_a_cpu_is_run() -> None:
    found = {path.parent.name for path in ROOT.glob("recipes/*/README.md") if HEADING in page(path.parent.name)}
    assert found == set(RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_does_what_it_says(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)

    def printed() -> str:
        captured = capfd.readouterr()
        return captured.err + captured.out

    section = page(recipe).partition(HEADING)[2]
    with fake_hub.serving() as hub:
        fake_hub.use(hub, monkeypatch, tmp_path)
        follow(blocks_of(section), Reader(tmp_path, printed))
    RECIPES[recipe](tmp_path)
