"""The two programs that `learning_defaults.py` compares, each in a separate process: `learning_programs.py JOB.json`.

Each trains with the job's YAML, answers its held-out questions, and prints as JSON the validation results, the numbers
of exact answers and of parameters, and the seconds. Both read the same files in OpenNMT-py's names. An answer is
exact if every token is the most likely one given those before it, as greedy search would write it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

Job = dict[str, Any]
Found = dict[str, Any]
Pairs = list[tuple[list[str], list[str]]]


def opennmt(job: Job) -> Found:
    """OpenNMT-py, through the parser of its command."""
    import torch
    from onmt.bin.train import _get_parser, train
    from onmt.model_builder import load_test_model
    from onmt.opts import translate_opts
    from onmt.trainer import Trainer
    from onmt.utils.parse import ArgumentParser

    validate, curve = Trainer.validate, []

    def recorded(trainer: Any, *arguments: Any, **named: Any) -> Any:
        statistics = validate(trainer, *arguments, **named)
        curve.append([statistics.ppl(), statistics.accuracy()])
        return statistics

    Trainer.validate = recorded
    options, _ = _get_parser().parse_known_args(["-config", job["config"]])
    train(options)
    parser = ArgumentParser()
    translate_opts(parser)
    file = f"{job['folder']}/model_step_{job['steps']}.pt"
    vocabs, model, _ = load_test_model(parser.parse_args(["-model", file, "-src", "none", "-gpu", "-1"]))

    @torch.no_grad()
    def best(src: list[str], tgt: list[str]) -> list[int]:
        tgt_BT1 = torch.tensor([vocabs["tgt"](tgt)])[:, :, None]
        length_B = torch.tensor([len(tgt)])
        if job["task"] == "lm":
            model.decoder.init_state()
            hidden_BTD, _ = model.decoder(tgt_BT1, enc_out=None, src_len=length_B)
        else:
            src_BS1 = torch.tensor([vocabs["src"](src)])[:, :, None]
            memory_BSD, state, length_B = model.encoder(src_BS1, torch.tensor([len(src)]))
            model.decoder.init_state(src_BS1, memory_BSD, state)
            hidden_BTD, _ = model.decoder(tgt_BT1, memory_BSD, src_len=length_B)
        found: list[int] = model.generator(hidden_BTD)[0].argmax(-1).tolist()
        return found

    parameters = {id(p): p.numel() for p in model.parameters()}
    exact = sum(_exact(job, src, tgt, best, vocabs["tgt"]) for src, tgt in questions(job))
    return {"curve": curve, "exact": exact, "parameters": sum(parameters.values())}


def ours(job: Job) -> Found:
    """onmt_llm, through the entry point of its command."""
    import torch

    from onmt_llm.checkpoint.load import Placement, build_model
    from onmt_llm.checkpoint.store import Checkpoint
    from onmt_llm.cli.train import main

    if code := main(["-config", job["config"]]):
        sys.exit(code)
    rows = [json.loads(row) for row in Path(job["folder"], "model_metrics.jsonl").read_text("utf-8").splitlines()]
    checkpoint = Checkpoint.open(f"{job['folder']}/model_step_{job['steps']}")
    model = build_model(checkpoint, Placement(torch.float32)).eval()
    codec = checkpoint.codec()

    @torch.no_grad()
    def best(src: list[str], tgt: list[str]) -> list[int]:
        sides = [(codec.vocab, tgt)] if job["task"] == "lm" else [(codec.src_vocab, src), (codec.vocab, tgt)]
        ids = [torch.tensor([vocab.ids(tokens)]) for vocab, tokens in sides]
        found: list[int] = model(*ids)[0].argmax(-1).tolist()
        return found

    exact = sum(_exact(job, src, tgt, best, codec.vocab.ids) for src, tgt in questions(job))
    return {
        "curve": [[row["ppl"], row["accuracy"]] for row in rows if row["split"] == "valid"],
        "exact": exact,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def questions(job: Job) -> Pairs:
    """The held-out pairs, as tokens."""
    sides = [Path(job["data"], f"valid.{side}").read_text(encoding="utf-8").splitlines() for side in ("src", "tgt")]
    return [(src.split(), tgt.split()) for src, tgt in zip(*sides, strict=True)]


def _exact(job: Job, src: Sequence[str], tgt: Sequence[str], best: Any, encode: Any) -> bool:
    """Whether each token of the answer, the end included, is the most likely one."""
    head = ["<s>", *src, "="] if job["task"] == "lm" else ["<s>"]
    wanted = list(encode([*tgt, "</s>"]))
    return bool(best(list(src), [*head, *tgt])[len(head) - 1 :] == wanted)


def run(file: str) -> None:
    """Run the job of a file, and print its results."""
    job: Job = json.loads(Path(file).read_text(encoding="utf-8"))
    began = time.monotonic()
    found = {"opennmt": opennmt, "ours": ours}[job["program"]](job)
    found["seconds"] = round(time.monotonic() - began, 1)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    run(sys.argv[1])
