"""The vocabulary of a new model."""

from __future__ import annotations

from pathlib import Path

from onmt_llm.cli.jobs import load_job
from onmt_llm.data.run_codec import new_codec

YAML = """\
src_vocab: {folder}/vocab
tgt_vocab: {folder}/vocab
data:
  c:
    path_src: {folder}/vocab
    path_tgt: {folder}/vocab
    transforms: [{transforms}]
    src_prefix: ｟de｠
    tgt_suffix: end .
save_model: {folder}/model
encoder_type: transformer
decoder_type: transformer
"""


def new_tokens(folder: Path, transforms: str) -> list[str]:
    (folder / "vocab").write_text("a\nb\n.\n", encoding="utf-8")
    (folder / "x.yaml").write_text(YAML.format(folder=folder, transforms=transforms), encoding="utf-8")
    job = load_job("onmt_llm_train", ["-config", str(folder / "x.yaml")]).job
    vocab = new_codec(job).codec.vocab
    return [token for token in vocab if token not in ("<unk>", "<blank>", "<s>", "</s>", "a", "b", ".")]


def test_a_new_model_knows_the_words_of_prefixes_and_suffixes(tmp_path: Path) -> None:
    """A vocabulary file made without them trained `<unk>` in their place."""
    assert new_tokens(tmp_path, "prefix, suffix")[:2] == ["｟de｠", "end"]


def test_a_new_model_knows_the_line_break_between_joined_lines(tmp_path: Path) -> None:
    assert new_tokens(tmp_path, "docify")[0] == "｟newline｠"
