"""Model cards: their front matter as the Hub's client reads it, and what is left out because nothing says it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny
from onmt_llm.checkpoint.card import CardFormat, model_card
from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.provenance import Provenance, TrainingRun, UsedCorpus, provenance_text, read_provenance
from onmt_llm.config.card import NOTHING_TO_ADD, CardOptions
from onmt_llm.config.checkpoint import CheckpointConfig, LanguageTokens, TokenizerSpec
from onmt_llm.errors import CheckpointError

LM = CheckpointConfig(model=tiny.llama(), source="Hugging Face llama, base")
FORMAT = CardFormat("for tests", "transformers", 'load("{folder}")')
SOURCE = f"hf://datasets/me/rows@{'1' * 40}"
RUN = TrainingRun(
    base="Hugging Face llama, base",
    base_fingerprint="f" * 64,
    step=6,
    settings={"learning_rate": 0.01, "lora_layers": ["q_proj", "v_proj"], "lora_rank": 2},
    corpora=[UsedCorpus(name="chats", weight=0.5), UsedCorpus(name="not a name", weight=2, sources=[SOURCE])],
    validated=4,
    scores={"ppl": 2.5},
    versions={"onmt_llm": "0.1.0"},
)


def test_the_hubs_client_reads_the_front_matter() -> None:
    hub = pytest.importorskip("huggingface_hub")
    options = CardOptions(license="apache-2.0", language=["en"], hub_base="org/base")
    card = hub.ModelCard(model_card("mine", LM, Provenance(runs=[RUN]), FORMAT, options))
    assert card.data.to_dict() == {
        "language": ["en"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "datasets": ["chats", "me/rows"],
        "tags": ["onmt_llm", "lora"],
    }


def test_a_card_tells_the_training_and_how_to_use_the_model() -> None:
    text = model_card("mine", LM, Provenance(runs=[RUN]), FORMAT, NOTHING_TO_ADD)
    for line in (
        "- base: Hugging Face llama, base (fingerprint `ffffffffffffffff`)",
        f"- corpora: chats (weight 0.5), not a name (weight 2, {SOURCE})",
        "- `lora_layers`: q_proj, v_proj",
        "Validation at step 4:",
        "| ppl | 2.5 |",
        'load("mine")',
    ):
        assert line in text.splitlines()


def test_nothing_unknown_is_in_a_card() -> None:
    text = model_card("mine", LM, Provenance(), CardFormat("for tests", "transformers"), NOTHING_TO_ADD)
    front, _, rest = text.removeprefix("---\n").partition("---\n")
    assert re.findall(r"^(\w+):", front, flags=re.M) == ["library_name", "pipeline_tag", "tags"]
    assert re.findall(r"^## (\w+)", rest, flags=re.M) == ["Versions"]


def test_a_translation_model_names_its_languages() -> None:
    languages = LanguageTokens(tokens={"eng_Latn": "eng_Latn", "de_DE": "de_DE", "x-klingon": "k"})
    config = CheckpointConfig(model=tiny.seq2seq(), languages=languages)
    text = model_card("mine", config, Provenance(), FORMAT, NOTHING_TO_ADD)
    assert "language:\n- de\n- eng\n" in text and "pipeline_tag: translation\n" in text


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    assert read_provenance(tmp_path).runs == []
    file = tmp_path / "provenance.json"
    file.write_text(provenance_text(Provenance(runs=[RUN])))
    assert read_provenance(tmp_path).runs == [RUN]
    for text in ("[", '{"runs": []}', '{"version": 1, "runs": [{"steps": 3}]}', '{"version": 2, "new": 1}'):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"provenance\.json must"):
            read_provenance(tmp_path)


def test_the_record_comes_back_from_an_export(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.write_checkpoint(tmp_path / "m", tiny.llama(), tokenizer=TokenizerSpec(kind="none"))
    (model / "provenance.json").write_text(provenance_text(Provenance(runs=[RUN])))
    hf = export_hf(model, tmp_path / "hf")
    assert read_provenance(convert(hf, tmp_path / "again", tokenizer_model="none")).runs == [RUN]
    (hf / "provenance.json").write_text('{"of": "another program"}')
    assert read_provenance(convert(hf, tmp_path / "foreign", tokenizer_model="none")).runs == []
    assert "provenance.json must be a record of training runs" in caplog.text
