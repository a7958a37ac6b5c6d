"""Makes this folder's files with OpenNMT-py 3.5.1: a tiny model that it trains itself, and what it answers.

    TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 OPENNMT_PYTHON tests/data/opennmt_beam/make.py [FOLDER]

The task is to reverse a sentence word for word, with noise, so that the model stays unsure; some words are in no
vocabulary. `model.pt` is the checkpoint without optimiser and position tables, `expected.json` has the cases: options,
the sources, for each of these the n-best list and its scores. With a folder, everything goes there, and an ensemble of
two checkpoints is among the cases. Sources are translated one by one: in a batch OpenNMT-py's maximum length, its end
by `ratio` and its coverage penalty depend on the neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import onmt.opts
import torch
from onmt.bin.train import train
from onmt.inference_engine import InferenceEnginePY
from onmt.utils.parse import ArgumentParser

WORDS = 22
STEPS = 3000
MODEL = f"model_step_{STEPS}.pt"
FIVE = {"beam_size": 5, "n_best": 5}
CASES: list[dict[str, Any]] = [
    FIVE | {"length_penalty": "avg"},
    FIVE | {"length_penalty": "wu", "alpha": 0.8},
    FIVE | {"length_penalty": "none"},
    FIVE | {"length_penalty": "avg", "alpha": 0.5},
    FIVE | {"coverage_penalty": "wu", "beta": 0.1},
    FIVE | {"coverage_penalty": "summary", "beta": 0.4},
    FIVE | {"coverage_penalty": "summary", "beta": 2.0, "stepwise_penalty": True},
    FIVE | {"ratio": 1.1},
    {"beam_size": 4, "n_best": 2, "ratio": 0.6},
    FIVE | {"block_ngram_repeat": 2},
    FIVE | {"block_ngram_repeat": 2, "ignore_when_blocking": ["v1", "v2", "v3"]},
    FIVE | {"ban_unk_token": True, "min_length": 8},
    {"beam_size": 3, "n_best": 1, "max_length": 4},
    {"beam_size": 3, "n_best": 2, "max_length_ratio": 0.5},
    FIVE | {"tgt_file_prefix": True},
    FIVE | {"replace_unk": True},
    FIVE | {"replace_unk": True, "phrase_table": "table.txt"},
    FIVE | {"report_align": True},
]
MANY = 2
"""Cases that are asked about all sources; the others about the last ones only."""
ARCHITECTURE = {
    "model_task", "encoder_type", "decoder_type", "enc_layers", "dec_layers", "layers", "hidden_size", "heads",
    "transformer_ff", "pos_ffn_activation_fn", "layer_norm", "norm_eps", "position_encoding", "position_encoding_type",
    "max_relative_positions", "share_embeddings", "share_decoder_embeddings", "alignment_layer", "alignment_heads",
}  # fmt: skip


def sentence(rng: random.Random) -> list[str]:
    return [f"w{rng.randrange(WORDS)}" for _ in range(rng.randint(2, 9))]


def translation(source: list[str], rng: random.Random) -> list[str]:
    numbers = [int(word[1:]) + (rng.random() < 0.25) for word in reversed(source)]
    return [f"v{number % WORDS}" for number in numbers]


def write_data(rng: random.Random) -> list[str]:
    for name, size in (("train", 4000), ("valid", 20)):
        pairs = [(source, translation(source, rng)) for source in (sentence(rng) for _ in range(size))]
        Path(f"{name}.src").write_text("".join(" ".join(source) + "\n" for source, _ in pairs))
        Path(f"{name}.tgt").write_text("".join(" ".join(target) + "\n" for _, target in pairs))
    Path("vocab.src").write_text("".join(f"w{n}\t1\n" for n in range(WORDS - 1)))
    Path("vocab.tgt").write_text("".join(f"v{n}\t1\n" for n in range(WORDS - 3)))
    Path("table.txt").write_text("w20|||twenty\nw19|||nineteen\n")
    return [" ".join(sentence(rng)) for _ in range(46)] + [
        "w1 w1 w1 w1 w1",
        "w3 w4 w3 w4 w3 w4",
        "w20 w2 w19",
        "w21 w5",
    ]


def parsed(add: Any, options: dict[str, Any]) -> argparse.Namespace:
    argv: list[str] = []
    for name, value in options.items():
        argv += [f"-{name}", *([] if value is True else map(str, value if isinstance(value, list) else [value]))]
    parser = ArgumentParser()
    add(parser)
    return parser.parse_known_args(argv)[0]


def train_model() -> None:
    options = {
        "src_vocab": "vocab.src", "tgt_vocab": "vocab.tgt", "save_data": "data", "seed": 3, "num_workers": 0,
        "data": "{c: {path_src: train.src, path_tgt: train.tgt}, valid: {path_src: valid.src, path_tgt: valid.tgt}}",
        "encoder_type": "transformer", "decoder_type": "transformer", "position_encoding": True,
        "enc_layers": 2, "dec_layers": 2, "heads": 4, "hidden_size": 32, "word_vec_size": 32, "transformer_ff": 64,
        "dropout": 0.0, "attention_dropout": 0.0, "param_init_glorot": True, "self_attn_type": "scaled-dot",
        "alignment_layer": -1, "alignment_heads": 2, "batch_type": "sents", "batch_size": 48, "bucket_size": 4000,
        "optim": "adam", "adam_beta2": 0.998, "decay_method": "noam", "learning_rate": 2, "warmup_steps": 300,
        "label_smoothing": 0.1, "train_steps": STEPS, "save_checkpoint_steps": STEPS // 2, "valid_steps": STEPS,
        "report_every": STEPS // 4, "save_model": "model",
    }  # fmt: skip
    parse = ArgumentParser()
    onmt.opts.train_opts(parse)
    argv = [
        word
        for name, value in options.items()
        for word in ([f"-{name}"] if value is True else [f"-{name}", str(value)])
    ]
    train(parse.parse_known_args(argv)[0])


def answers(models: list[str], sources: list[str], options: dict[str, Any]) -> list[list[list[Any]]]:
    """For each source its (answer, score) pairs."""
    Path("in.txt").write_text("".join(source + "\n" for source in sources))
    extra = dict(options)
    if options.get("tgt_file_prefix"):
        Path("prefix.txt").write_text("".join(f"v{place % 9} v{place % 5}\n" for place in range(len(sources))))
        extra["tgt"] = "prefix.txt"
    asked = {"model": models, "src": "in.txt", "output": os.devnull, "gpu": -1, "batch_size": 1, "world_size": 0}
    opt = parsed(onmt.opts.translate_opts, asked | extra)
    ArgumentParser.validate_translate_opts(opt)
    ArgumentParser._get_all_transform_translate(opt)
    ArgumentParser._validate_transforms_opts(opt)
    ArgumentParser.validate_translate_opts_dynamic(opt)
    scores, texts = InferenceEnginePY(opt).infer_file()
    return [
        [[text, float(score)] for text, score in zip(*found, strict=True)] for found in zip(texts, scores, strict=True)
    ]


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        sources = write_data(random.Random(11))
        train_model()
        cases = []
        for number, options in enumerate(CASES):
            asked = sources if number < MANY else sources[-12:]
            cases.append({"options": options, "sources": asked, "answers": answers([MODEL], asked, options)})
        models = [MODEL]
        if len(sys.argv) > 1:
            models.append(f"model_step_{STEPS // 2}.pt")
            cases.append(
                {
                    "options": FIVE,
                    "models": 2,
                    "sources": sources[-12:],
                    "answers": answers(models, sources[-12:], FIVE),
                }
            )
        for number, name in enumerate(models):
            content = torch.load(name, weights_only=False)
            content["optim"] = None
            content["model"] = {key: value for key, value in content["model"].items() if not key.endswith("pe.pe")}
            content["opt"] = argparse.Namespace(**{k: v for k, v in vars(content["opt"]).items() if k in ARCHITECTURE})
            torch.save(content, target / ("model.pt" if number == 0 else f"model_{number}.pt"))
        lines = ",\n".join(json.dumps(case) for case in cases)
        (target / "expected.json").write_text(f"[\n{lines}\n]\n")
        os.chdir(target)


if __name__ == "__main__":
    main()
