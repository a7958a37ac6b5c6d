"""The note about defaults that differ in OpenNMT-py."""

from __future__ import annotations

from pathlib import Path

from onmt_llm.cli.jobs import load_job


def test_a_file_in_its_names_is_told_what_it_leaves_to_other_defaults(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    pairs = "data:\n  a: {path_src: s, path_tgt: t}\nsrc_vocab: v\ntgt_vocab: v\n"

    def told(text: str) -> str:
        file.write_text(text, encoding="utf-8")
        notes = [
            n for n in load_job("onmt_llm_train", ["-config", str(file)]).notes if "another default in OpenNMT-py" in n
        ]
        assert len(notes) < 2
        return notes[0] if notes else ""

    quickstart = told(pairs + "world_size: 1\ngpu_ranks: [0]\n")
    for part in (
        *("encoder_type rnn (transformer here)", "enc_layers 2 (6 here)", "dropout [0.3] ([0.0] here)"),
        *("src_vocab_size 32768 (0 here)", "tgt_vocab_size 32768 (0 here)"),
        *("optim sgd (adamw here)", "learning_rate 1.0 (0.0001 here)", "position_encoding false (sinusoidal here)"),
    ):
        assert part in quickstart
    assert "warmup_steps" not in quickstart and "src_eq_tgt" not in quickstart
    transformer = told(
        pairs + "encoder_type: transformer\ndecoder_type: transformer\nword_vec_size: 64\ndropout: [0]\n"
    )
    assert "layers" not in transformer and "size 500" not in transformer and "[0.3]" not in transformer
    assert "warmup_steps 4000 (0 here)" in told(pairs + "enc_layers: 2\ndecay_method: noam\n")
    assert "optim sgd" in told("train_from: c\ndec_layers: 2\n") and "rnn" not in told("train_from: c\ndec_layers: 2\n")
    assert "weight_decay 0.01 (0.0 here)" in told(pairs + "enc_layers: 2\noptim: adamw8bit\n")
    assert "weight_decay" not in told(pairs + "enc_layers: 2\noptim: adam\n")
    assert told(pairs) == "" and told(pairs + "lr: 0.1\nlora_r: 4\n") == ""


def test_translation_is_told_about_its_own_defaults() -> None:
    def told(*words: str) -> list[str]:
        notes = load_job("onmt_llm_translate", ["-model", "m", "-src", "s", *words]).notes
        return [note for note in notes if "another default in OpenNMT-py" in note]

    assert told() == []
    assert "beam_size 5 (1 here), max_length 250 (256 here)" in told("-gpu", "0")[0]
    assert told("-gpu", "0", "-beam_size", "5", "-max_length", "100") == []
    assert "beam_size" not in told("-gpu", "0", "-random_sampling_topk", "40")[0]
