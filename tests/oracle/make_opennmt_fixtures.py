"""Train tiny models with OpenNMT-py 3.5.1 and record what they compute. Run by an interpreter that has OpenNMT-py.

    PYTHON_OF_OPENNMT make_opennmt_fixtures.py make DIRECTORY [NAME ...]    tests/data/opennmt was written so
    PYTHON_OF_OPENNMT make_opennmt_fixtures.py score DIRECTORY              X.pt, X.npz -> X.scored.npz
    PYTHON_OF_OPENNMT make_opennmt_fixtures.py search DIRECTORY             X.pt, X.beams.json -> X.searched.json
    PYTHON_OF_OPENNMT make_opennmt_fixtures.py resume MODEL.pt              trains three steps more

`make` trains each model of `MODELS` for a few dozen steps on the task "write the letters of the digits backwards" and
stores `NAME.pt` (weights, vocabulary, options; neither optimiser state nor the tables of sines, which are computed) and
`NAME.npz` (a batch: src, src_length, tgt, tgt_length, logits of the whole padded batch; with a sliding window also
`stepwise`, the logits of decoding with the cache, which differ there). `reverse` is trained until it has learned the
task, and has 50 sentences with the five best answers of beam search beside it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from onmt.bin.train import _get_parser as train_parser
from onmt.bin.train import train
from onmt.model_builder import load_test_model
from onmt.models.model_saver import load_checkpoint
from onmt.opts import translate_opts
from onmt.utils.parse import ArgumentParser

DIGITS = [str(i) for i in range(10)]
LETTERS = list("abcdefghij")
CASES = ["l", "u", "m"]

COMMON: dict[str, Any] = {
    "layers": 2,
    "hidden_size": 16,
    "word_vec_size": 16,
    "heads": 4,
    "transformer_ff": 24,
    "dropout": [0.0],
    "attention_dropout": [0.0],
    "self_attn_type": "scaled-dot",
    "param_init": 0.0,
    "param_init_glorot": True,
    "optim": "adam",
    "learning_rate": 0.01,
    "adam_beta2": 0.98,
    "batch_size": 32,
    "batch_type": "sents",
    "train_steps": 40,
    "bucket_size": 512,
    "num_workers": 0,
    "report_every": 1000,
    "vocab_size_multiple": 1,
    "seed": 7,
    "world_size": 1,
    "gpu_ranks": [],
}
SEQ2SEQ = {"encoder_type": "transformer", "decoder_type": "transformer"}
LM = {"model_task": "lm", "encoder_type": "transformer_lm", "decoder_type": "transformer_lm", "share_vocab": True}
SHARED = {"share_vocab": True, "share_embeddings": True, "share_decoder_embeddings": True}
LLAMA = {"layer_norm": "rms", "pos_ffn_activation_fn": "silu", "max_relative_positions": -1, "norm_eps": 1e-5}

MODELS: dict[str, dict[str, Any]] = {
    "s2s_sinusoidal": {**SEQ2SEQ, "position_encoding": True},
    "s2s_sinusoidal_shared": {
        **SEQ2SEQ,
        **SHARED,
        "position_encoding": True,
        "pos_ffn_activation_fn": "gelu",
        "add_qkvbias": True,
        "add_ffnbias": True,
        "average_decay": 0.05,
        "lambda_align": 0.0,
    },
    "s2s_concat": {**SEQ2SEQ, "position_encoding": True, "position_encoding_type": "SinusoidalConcat"},
    "s2s_shaw": {**SEQ2SEQ, "max_relative_positions": 3},
    "s2s_shaw_shared": {**SEQ2SEQ, **SHARED, "max_relative_positions": 4, "num_kv": 2},
    "s2s_t5": {
        **SEQ2SEQ,
        **SHARED,
        "max_relative_positions": 12,
        "relative_positions_buckets": 8,
        "layer_norm": "rms",
        "pos_ffn_activation_fn": "gated-gelu",
    },
    "s2s_rotary": {**SEQ2SEQ, **LLAMA, "rotary_interleave": True, "multiquery": True},
    "s2s_rotary_shared": {**SEQ2SEQ, **LLAMA, **SHARED, "rotary_interleave": False, "rotary_theta": 500},
    "s2s_alibi": {**SEQ2SEQ, "max_relative_positions": -2, "heads": 4},
    "s2s_features_sum": {**SEQ2SEQ, "position_encoding": True, "n_src_feats": 1, "feat_merge": "sum"},
    "s2s_features_concat": {
        **SEQ2SEQ,
        "position_encoding": True,
        "n_src_feats": 1,
        "feat_merge": "concat",
        "feat_vec_size": 4,
        "word_vec_size": -1,
        "src_word_vec_size": 12,
        "tgt_word_vec_size": 16,
    },
    "lm_sinusoidal": {**LM, "position_encoding": True, "share_decoder_embeddings": True},
    "lm_shaw": {**LM, "max_relative_positions": 3},
    "lm_rotary": {**LM, **LLAMA, "rotary_interleave": True, "num_kv": 2},
    "lm_rotary_parallel": {
        **LM,
        "max_relative_positions": -1,
        "rotary_interleave": False,
        "rotary_dim": 2,
        "parallel_residual": True,
        "shared_layer_norm": True,
        "pos_ffn_activation_fn": "gelu",
    },
    "lm_window": {**LM, **LLAMA, "rotary_interleave": True, "sliding_window": 3},
    "s2s_window": {**SEQ2SEQ, "max_relative_positions": 3, "sliding_window": 3},
    "reverse": {
        **SEQ2SEQ,
        **SHARED,
        "max_relative_positions": -1,
        "rotary_interleave": True,
        "train_steps": 700,
        "learning_rate": 0.005,
    },
}
LEARNT = "reverse"


def sentences(count: int, *, shared: bool, seed: int) -> tuple[list[list[str]], list[list[str]]]:
    """Digits, and the letters of the digits backwards (with one vocabulary: the digits backwards)."""
    rng = random.Random(seed)
    sources, targets = [], []
    for _ in range(count):
        digits = [rng.randrange(10) for _ in range(rng.randint(2, 8))]
        sources.append([DIGITS[i] for i in digits])
        targets.append([(DIGITS if shared else LETTERS)[i] for i in reversed(digits)])
    return sources, targets


def write_lines(file: Path, lines: list[list[str]]) -> None:
    file.write_text("".join(" ".join(line) + "\n" for line in lines), encoding="utf-8")


def make(name: str, output: Path) -> None:
    """Train `MODELS[name]` and store it with a batch and its logits."""
    model = {**COMMON, **MODELS[name]}
    is_lm = model.get("model_task") == "lm"
    shared = bool(model.get("share_vocab"))
    sources, targets = sentences(600, shared=shared, seed=1)
    if is_lm:
        sources = [[*s, "=", *t] for s, t in zip(sources, targets, strict=True)]
    feats = bool(model.get("n_src_feats"))
    lines = [[f"{token}￨{CASES[int(token) % 3]}" for token in s] for s in sources] if feats else sources
    corpus: dict[str, Any] = {"path_src": "src.txt", "weight": 1, "transforms": ["inferfeats"] if feats else []}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_lines(Path("src.txt"), lines)
        if not is_lm:
            write_lines(Path("tgt.txt"), targets)
            corpus["path_tgt"] = "tgt.txt"
        write_lines(Path("src.vocab"), [[token] for token in [*DIGITS, "="]])
        write_lines(Path("src.vocab_feat0"), [[case] for case in CASES])
        write_lines(Path("tgt.vocab"), [[token] for token in LETTERS])
        settings = {
            **model,
            "data": {"corpus": corpus},
            "src_vocab": "src.vocab",
            "save_model": "model",
            "save_checkpoint_steps": model["train_steps"],
            "save_data": "data",
        }
        if not shared:
            settings["tgt_vocab"] = "tgt.vocab"
        Path("train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        options, _ = train_parser().parse_known_args(["-config", "train.yaml"])
        train(options)
        content = torch.load(f"model_step_{model['train_steps']}.pt", map_location="cpu", weights_only=False)
        torch.save({**content, "optim": None}, "whole.pt")
        batch = make_batch(content, name, seed=2)
        batch["logits"] = logits(Path("whole.pt"), batch)
        if not is_lm and model.get("sliding_window"):
            batch["stepwise"] = stepwise_logits(Path("whole.pt"), batch)
        beams = None
        if name == LEARNT:
            beams = search(Path("whole.pt"), [" ".join(s) for s in sentences(50, shared=shared, seed=3)[0]])
    content["model"] = {
        key: tensor
        for key, tensor in content["model"].items()
        if not key.endswith(".pe.pe") or model.get("feat_merge") == "concat"
    }
    for key in [key for key in content["model"] if key.endswith(".pe.pe")]:
        content["model"][key] = content["model"][key][:40].clone()
    content["opt"] = Namespace(**{**vars(content["opt"]), "_all_transform": set(content["opt"]._all_transform)})
    torch.save({**content, "optim": None}, output / f"{name}.pt")
    np.savez_compressed(output / f"{name}.npz", **batch)
    if beams is not None:
        (output / f"{name}.beams.json").write_text(json.dumps(beams, indent=0), encoding="utf-8")


def make_batch(content: dict[str, Any], name: str, *, seed: int) -> dict[str, np.ndarray]:
    """Ids of sentences of different lengths; targets (and texts of language models) begin with the start token."""
    vocab = content["vocab"]
    shared = bool(MODELS[name].get("share_vocab"))
    sources, targets = sentences(4, shared=shared, seed=seed)
    if vocab["data_task"] == "lm":
        texts = [["<s>", *s, "=", *t] for s, t in zip(sources, targets, strict=True)]
        tgt, tgt_length = pad(texts, vocab["tgt"])
        return {"tgt": tgt, "tgt_length": tgt_length}
    src, src_length = pad(sources, vocab["src"])
    tgt, tgt_length = pad([["<s>", *t] for t in targets], vocab["tgt"])
    batch = {"src": src, "src_length": src_length, "tgt": tgt, "tgt_length": tgt_length}
    if "src_feats" in vocab:
        feats = [[CASES[int(token) % 3] for token in s] for s in sources]
        batch["feats"] = pad(feats, vocab["src_feats"][0])[0]
    return batch


def pad(sentences: list[list[str]], vocab: list[str]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(map(len, sentences))
    ids = [[vocab.index(t) for t in s] + [vocab.index("<blank>")] * (longest - len(s)) for s in sentences]
    return np.array(ids, dtype=np.int64), np.array([len(s) for s in sentences], dtype=np.int64)


def inference_options(model: Path, **changes: Any) -> Namespace:
    parser = ArgumentParser()
    translate_opts(parser)
    words = ["-model", str(model), "-src", "none", "-gpu", "-1", "-self_attn_type", "scaled-dot", "-world_size", "0"]
    options = parser.parse_args(words)
    for key, value in changes.items():
        setattr(options, key, value)
    return options


@torch.no_grad()
def logits(model_file: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits (B, T, V) of the padded batch, teacher-forced, as OpenNMT-py computes them in training."""
    _, model, _ = load_test_model(inference_options(model_file))
    tgt_BT1 = torch.from_numpy(batch["tgt"])[:, :, None]
    if "src" not in batch:
        model.decoder.init_state()
        hidden_BTD, _ = model.decoder(tgt_BT1, enc_out=None, src_len=torch.from_numpy(batch["tgt_length"]))
        return model.generator(hidden_BTD).numpy()
    columns = [batch["src"], *([batch["feats"]] if "feats" in batch else [])]
    src_BSF = torch.from_numpy(np.stack(columns, axis=-1))
    length_B = torch.from_numpy(batch["src_length"])
    memory_BSD, state, length_B = model.encoder(src_BSF, length_B)
    model.decoder.init_state(src_BSF, memory_BSD, state)
    hidden_BTD, _ = model.decoder(tgt_BT1, memory_BSD, src_len=length_B)
    return model.generator(hidden_BTD).numpy()


@torch.no_grad()
def stepwise_logits(model_file: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Logits (B, T, V) of the target, one token after the other with the cache, as OpenNMT-py translates.

    (With a language model it fails there as soon as the cache is longer than the window.)
    """
    _, model, _ = load_test_model(inference_options(model_file))
    src_BS1 = torch.from_numpy(batch["src"])[:, :, None]
    memory_BSD, state, length_B = model.encoder(src_BS1, torch.from_numpy(batch["src_length"]))
    model.decoder.init_state(src_BS1, memory_BSD, state)
    steps = []
    for step, tgt_B in enumerate(torch.from_numpy(batch["tgt"]).unbind(dim=1)):
        hidden_B1D, _ = model.decoder(tgt_B[:, None, None], memory_BSD, src_len=length_B, step=step)
        steps.append(model.generator(hidden_B1D))
    return torch.cat(steps, dim=1).numpy()


def search(model_file: Path, sources: list[str]) -> dict[str, Any]:
    """The five best answers of beam search, under two length penalties, with the model's own prefix and suffix."""
    from onmt.inference_engine import InferenceEnginePY

    stored = vars(load_checkpoint(str(model_file))["opt"])
    around = {name: stored.get(name, "") for name in ("src_prefix", "src_suffix", "tgt_prefix")}
    transforms = [name for name in stored.get("transforms") or [] if name in ("prefix", "suffix")]
    found: dict[str, Any] = {"sources": sources}
    for penalty, alpha in (("avg", 1.0), ("wu", 0.6)):
        options = inference_options(
            model_file,
            beam_size=5,
            n_best=5,
            length_penalty=penalty,
            alpha=alpha,
            max_length=20,
            max_length_ratio=0,
            batch_size=16,
            batch_type="sents",
            transforms=transforms,
            _all_transform=set(transforms),
            tgt_file_prefix=bool(around["tgt_prefix"]),
            tgt_suffix="",
            output=os.devnull,
            **around,
        )
        engine = InferenceEnginePY(options)
        scores, answers = engine.infer_list(sources)
        found[penalty] = {
            "alpha": alpha,
            "answers": answers,
            "scores": [[round(float(score), 6) for score in line] for line in scores],
        }
    return found


def main(arguments: list[str]) -> None:
    action, folder, *names = arguments
    here = Path(folder).resolve()
    if action == "make":
        here.mkdir(parents=True, exist_ok=True)
        for name in names or MODELS:
            make(name, here)
            print(name, (here / f"{name}.pt").stat().st_size)
    elif action == "score":
        for file in sorted(here.glob("*.pt")):
            batch = dict(np.load(file.with_suffix(".npz")))
            np.savez_compressed(here / f"{file.stem}.scored.npz", logits=logits(file, batch))
    elif action == "search":
        for file in sorted(here.glob("*.beams.json")):
            name = file.name.removesuffix(".beams.json")
            sources = json.loads(file.read_text(encoding="utf-8"))["sources"]
            found = search(here / f"{name}.pt", sources)
            (here / f"{name}.searched.json").write_text(json.dumps(found), encoding="utf-8")
    elif action == "resume":
        resume(here)
    else:
        raise SystemExit(__doc__)


def resume(model: Path) -> None:
    """Train on from a file that OpenNMT-py did not write: its options must be complete."""
    vocab = load_checkpoint(str(model))["vocab"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        lines = [vocab["tgt"][4:9], vocab["tgt"][5:9]] * 8
        write_lines(Path("text"), lines)
        corpus = {"path_src": "text", **({} if vocab["data_task"] == "lm" else {"path_tgt": "text"})}
        write_lines(Path("vocab"), [[token] for token in vocab["tgt"][4:]])
        settings = {
            **{
                key: value for key, value in COMMON.items() if not key.startswith(("layers", "hidden", "word", "heads"))
            },
            "data": {"corpus": corpus},
            "model_task": vocab["data_task"],
            "src_vocab": "vocab",
            "share_vocab": True,
            "save_model": "resumed",
            "train_from": str(model),
            "train_steps": 3,
            "save_checkpoint_steps": 3,
            "reset_optim": "all",
        }
        Path("train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        train(train_parser().parse_known_args(["-config", "train.yaml"])[0])
        assert Path("resumed_step_3.pt").exists()
        print("resumed")


if __name__ == "__main__":
    main(sys.argv[1:])
