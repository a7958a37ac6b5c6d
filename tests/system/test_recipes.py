"""The recipes: the section "On a CPU" of each README runs as written, and its figures are reached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import fake_hub
import pytest
from pages import ROOT, Reader, blocks_of, follow

import onmt_llm
from onmt_llm.checkpoint.provenance import read_provenance

sacrebleu = pytest.importorskip("sacrebleu")
transformers = pytest.importorskip("transformers")
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


def validations(run: Path) -> list[dict[str, float]]:
    rows = map(json.loads, Path(f"{run}_metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["split"] == "valid"]


def check_claire(folder: Path) -> None:
    """Both models learn both kinds of dialogue; an answer ends before the next speaker's tag."""
    toy = folder / "toy"
    for run in ("falcon", "mistral"):
        first, *_, last = validations(toy / "run" / run)
        assert all(last[f"valid_{genre}/xent"] < first[f"valid_{genre}/xent"] for genre in ("meetings", "theatre"))
    assert (toy / "curves.png").stat().st_size > 0 and list((toy / "claire-gguf").glob("*.gguf"))
    transformers.AutoModelForCausalLM.from_pretrained(toy / "claire-hf")
    (run_of,) = read_provenance(toy / "claire-hf").runs
    assert run_of.corpora[0].weight == pytest.approx(7306 / 12774)  # words and turns of the meetings
    assert run_of.step == 40 and {corpus.name for corpus in run_of.corpora} == {
        "dialogues_meetings",
        "dialogues_theatre",
    }
    answer = onmt_llm.open_engine(toy / "claire").ask("Shall we talk about the budget?", max_length=60)
    assert answer and "[" not in answer


def check_control(folder: Path) -> None:
    """New blocks cost the old task less than training the whole model, and the resumed curve is whole."""
    whole, control = (validations(folder / "toy" / name) for name in ("whole", "control"))
    assert [row["step"] for row in control] == [100, 200]
    assert control[-1]["valid_first/xent"] < whole[-1]["valid_first/xent"]
    assert control[-1]["valid_new/xent"] < 0.5 * CONTROL_BEFORE
    transformers.AutoModelForCausalLM.from_pretrained(folder / "toy/exported")


def check_latxa(folder: Path) -> None:
    """Texts and answers of both languages are learned from the shards."""
    first, *_, last = validations(folder / "toy/run/latxa")
    assert all(last[f"valid_{name}/xent"] < 0.85 * first[f"valid_{name}/xent"] for name in ("basque", "english"))
    transformers.AutoModelForCausalLM.from_pretrained(folder / "toy/latxa-hf")


def check_fineweb(folder: Path) -> None:
    first, *_, last = validations(folder / "toy/run/llama")
    assert last["xent"] < first["xent"] < 3
    ((corpus,),) = [run.corpora for run in read_provenance(folder / "toy/llama-hf").runs]
    assert [file.name for file in corpus.files] == ["index.json"]


CONTROL_BEFORE = 4.2
"""Loss of the new task before it is trained."""
RECIPES: dict[str, Callable[[Path], None]] = {
    "nllb_finetune": check_nllb,
    "claire": check_claire,
    "control_llm": check_control,
    "fineweb": check_fineweb,
    "latxa": check_latxa,
    "replicate_vicuna": lambda folder: None,
    "wmt_seq2seq": check_wmt,
}


def page(recipe: str) -> str:
    return (ROOT / "recipes" / recipe / "README.md").read_text(encoding="utf-8")


def test_every_recipe_that_runs_on_a_cpu_is_run() -> None:
    found = {path.parent.name for path in ROOT.glob("recipes/*/README.md") if HEADING in page(path.parent.name)}
    assert found == set(RECIPES)


@pytest.mark.slow
@pytest.mark.timeout(1200)
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

    section = page(recipe).partition(HEADING)[2].partition("\n## ")[0]
    with fake_hub.serving() as hub:
        fake_hub.use(hub, monkeypatch, tmp_path)
        follow(blocks_of(section), Reader(tmp_path, printed))
    RECIPES[recipe](tmp_path)
