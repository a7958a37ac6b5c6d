"""Run OpenNMT-py's transforms on given examples, under its own Python: JSON in and out.

Input: {"transform": name, "options": {...}, "vocab": [...], "examples": [[src, tgt], ...]}, sides as lists of tokens.
"""

from __future__ import annotations

import json
import random
import sys
from argparse import Namespace

import numpy as np
import torch
from onmt.transforms import AVAILABLE_TRANSFORMS, get_transforms_cls


class Vocab:
    def __init__(self, tokens: list[str]) -> None:
        self.ids_to_tokens = tokens


def main() -> None:
    task = json.load(sys.stdin)
    get_transforms_cls([task["transform"]])
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    options = Namespace(seed=1, src_subword_type="bpe", tgt_subword_type="bpe", **task["options"])
    transform = AVAILABLE_TRANSFORMS[task["transform"]](options)
    vocab = Vocab(task["vocab"])
    transform.warm_up({"src": vocab, "tgt": vocab})
    batch = [({"src": list(src), "tgt": list(tgt)}, None, "c") for src, tgt in task["examples"]]
    done = transform.batch_apply(batch, is_train=True)
    json.dump([[example["src"], example["tgt"]] for example, *_ in done], sys.stdout)


if __name__ == "__main__":
    main()
