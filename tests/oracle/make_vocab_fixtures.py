"""Make `tests/data/opennmt_vocab`: a small corpus, and the vocabularies that OpenNMT-py 3.5.1 builds from it.

    python tests/oracle/make_vocab_fixtures.py [FOLDER]

in an environment where OpenNMT-py 3.5.1 is installed (with TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 on a recent torch). It
also writes all options that its three commands print, with their defaults, to `tests/data/opennmt_options.txt`.
"""

from __future__ import annotations

import json
import os
import random
import sys
from argparse import Namespace
from pathlib import Path

SRC = "the a small old red house tree river cat dog man child sees finds likes near under behind and , . 's 12 Mr. café"
TGT = "der das ein kleine alte rote Haus Baum Fluss Katze Hund Mann Kind sieht findet mag bei unter hinter und , . 12"
TGT += " schön"
KWARGS = {"mode": "aggressive", "joiner_annotate": True}


def make_corpus(folder: Path) -> None:
    draw = random.Random(7)
    for side, words in (("src", SRC.split()), ("tgt", TGT.split())):
        weights = [1 / (rank + 1) for rank in range(len(words))]
        lines = (" ".join(draw.choices(words, weights, k=draw.randint(3, 9))) for _ in range(150))
        (folder / f"corpus.{side}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_features(folder: Path) -> None:
    """The source with two features behind each word: its length and its first letter."""
    lines = (folder / "corpus.src").read_text(encoding="utf-8").splitlines()
    tagged = (" ".join(f"{word}￨{len(word)}￨{word[0].upper()}" for word in line.split()) for line in lines)
    (folder / "tagged.src").write_text("".join(f"{line}\n" for line in tagged), encoding="utf-8")


def count(
    folder: Path, name: str, n_sample: int, transforms: list[str], source: str = "corpus.src", **options: object
) -> None:
    from onmt.bin.build_vocab import _get_parser, build_vocab_main

    data = {
        "c": {
            "path_src": str(folder / source),
            "path_tgt": str(folder / "corpus.tgt"),
            "transforms": transforms,
        }
    }
    yaml = folder / f"{name}.yaml"
    config = {
        "data": data,
        "save_data": str(folder / "x"),
        "src_vocab": str(folder / f"{name}.src.vocab"),
        "tgt_vocab": str(folder / f"{name}.tgt.vocab"),
        "n_sample": n_sample,
        "overwrite": True,
        **options,
    }
    yaml.write_text(json.dumps(config), encoding="utf-8")
    build_vocab_main(_get_parser().parse_known_args(["-config", str(yaml)])[0])
    yaml.unlink()


def model_vocab(folder: Path, **options: object) -> dict[str, list[str]]:
    """The tokens of a new model, as OpenNMT-py makes them of the vocabulary files."""
    from onmt.inputters.inputter import build_vocab, vocabs_to_dict

    defaults = {
        "src_vocab": str(folder / "words.src.vocab"),
        "tgt_vocab": str(folder / "words.tgt.vocab"),
        "default_specials": ["<unk>", "<blank>", "<s>", "</s>"],
        "src_words_min_frequency": 0,
        "tgt_words_min_frequency": 0,
        "src_vocab_size": 32768,
        "tgt_vocab_size": 32768,
        "vocab_size_multiple": 8,
        "share_vocab": False,
        "n_src_feats": 0,
        "data_task": "seq2seq",
        "decoder_start_token": "<s>",
    }
    vocab = vocabs_to_dict(build_vocab(Namespace(**{**defaults, **options}), {"src": [], "tgt": []}))
    return {"src": list(vocab["src"]), "tgt": list(vocab["tgt"])}


def write_options(file: Path) -> None:
    """Every option of the three commands: `command name default`, in the order in which `-h` prints them."""
    from onmt.bin import build_vocab, train, translate

    lines: list[str] = []
    for command, module in (("onmt_train", train), ("onmt_translate", translate), ("onmt_build_vocab", build_vocab)):
        for action in module._get_parser()._actions:
            names = dict.fromkeys(flag.lstrip("-").replace("-", "_") for flag in action.option_strings)
            default = json.dumps(None if action.default == "==SUPPRESS==" else action.default, ensure_ascii=False)
            lines += [f"{command} {name} {default}" for name in names if name not in ("h", "help")]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> int:
    data = Path(__file__).parents[1] / "data"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else data / "opennmt_vocab"
    folder.mkdir(parents=True, exist_ok=True)
    make_corpus(folder)
    count(folder, "words", -1, [])
    count(folder, "shared", 40, [], share_vocab=True)
    make_features(folder)
    count(folder, "tagged", -1, ["inferfeats"], "tagged.src", n_src_feats=2)
    for side in ("src", "tgt"):
        (folder / f"tagged.{side}.vocab").unlink()  # those of "words"
    bpe = folder / "bpe.codes"
    bpe.unlink(missing_ok=True)
    subword = {f"{side}_{key}": value for side in ("src", "tgt") for key, value in (
        ("subword_type", "bpe"), ("subword_model", str(bpe)), ("onmttok_kwargs", str(KWARGS))
    )}  # fmt: skip
    learn = {"learn_subwords": True, "learn_subwords_size": 40, "share_vocab": True}
    count(folder, "bpe", -1, ["onmt_tokenize"], **subword, **learn)
    cut = {"src_vocab_size": 16, "tgt_words_min_frequency": 20, "vocab_size_multiple": 10}
    models = {"plain": model_vocab(folder), "cut": model_vocab(folder, **cut)}
    models["shared"] = model_vocab(folder, share_vocab=True, src_words_min_frequency=10)
    text = json.dumps(models, ensure_ascii=False, indent=1)
    (folder / "models.json").write_text(text + "\n", encoding="utf-8")
    if len(sys.argv) == 1:
        write_options(data / "opennmt_options.txt")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    raise SystemExit(main())
