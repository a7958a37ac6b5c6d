"""Run OpenNMT-py 3.5.1's transforms on a parallel corpus.

    python tests/oracle/run_transforms.py SRC TGT OPTIONS [LID_MODEL] < names

in an environment where OpenNMT-py 3.5.1 is installed. OPTIONS is a JSON object, put below the corpus and globally;
standard input lists the transforms, one a line. Prints a JSON list [source, target] for each example that is left.
LID_MODEL is the language model (lid.176.ftz) that `clean` would download.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def transformed(src: str, tgt: str, options: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    from onmt.constants import CorpusTask
    from onmt.inputters.text_corpus import ParallelCorpus, build_corpora_iters
    from onmt.inputters.text_utils import process
    from onmt.transforms import get_transforms_cls, make_transforms
    from onmt.utils.parse import ArgumentParser

    parser = ArgumentParser()
    classes = get_transforms_cls(names)
    for each in classes.values():
        each.add_options(parser)
    opts = parser.parse_args([])
    vars(opts).update(options, seed=1, data={"c": {"path_src": src, "path_tgt": tgt, "transforms": names, **options}})
    corpora = build_corpora_iters({"c": ParallelCorpus("c", src, tgt)}, make_transforms(opts, classes, None), opts.data)
    return process(CorpusTask.TRAIN, list(corpora["c"])) or []


def use_language_model(file: str) -> None:
    """In place of the download; and round `predict`, which fails under NumPy 2."""
    import fasttext

    urllib.request.urlretrieve = lambda *args, **kwargs: None  # type: ignore[assignment]
    if not file:
        fasttext.load_model = lambda path: None
        return
    model = fasttext.load_model(file)

    def predict(text: str, k: int = 1) -> tuple[list[str], list[float]]:
        found = model.f.predict(f"{text}\n", k, 0.0, "strict")
        return [label for _, label in found], [score for score, _ in found]

    fasttext.load_model = lambda path: SimpleNamespace(predict=predict)


def main() -> None:
    src, tgt, options, *rest = sys.argv[1:]
    use_language_model(rest[0] if rest else "")
    assert Path(src).is_file() and Path(tgt).is_file()
    for example in transformed(src, tgt, json.loads(options), sys.stdin.read().split()):
        print(json.dumps([example["src"]["src"], example["tgt"]["tgt"]], ensure_ascii=False))


if __name__ == "__main__":
    main()
