"""`onmt_llm_eval tasks` beside lm-eval's own `hf` model on the same weights: log-likelihoods, answers, time.

python docs/benchmarks/evaluation.py -model CHECKPOINT -hf FOLDER -mmlu FOLDER -text FILE
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from onmt_llm.eval.harness import HarnessModel, TaskOptions, load_tasks
from onmt_llm.generate.open import open_engine

SUBJECTS = ("marketing", "astronomy", "world_religions")
TASK = "task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
ROLLING = (
    "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list: [{metric: word_perplexity}]\n"
)
ANSWERS = (
    "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: ''\nmetric_list: [{metric: exact_match}]\n"
    'generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 24, do_sample: false}\n'
)
EAGER = {"dtype": "float32", "attn_implementation": "eager"}


def local_tasks(folder: Path, text: Path, *, texts: int, words: int, answers: int) -> None:
    """Tasks of rolling log-likelihoods, of pieces of a text, and of answers, to the beginnings of its longest lines."""
    content = text.read_text(encoding="utf-8")
    found = content.split(" ")
    pieces = [" ".join(found[place * words : (place + 1) * words]).strip() for place in range(texts)]
    longest = sorted(content.splitlines(), key=len)[-answers:]
    beginnings = [line.strip()[:200].rsplit(" ", 1)[0] for line in longest]
    for name, body, rows in (("rolling", ROLLING, pieces), ("answers", ANSWERS, beginnings)):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
        (folder / f"{name}.yaml").write_text(TASK.format(name=f"local_{name}", file=file) + body)


def requests(options: TaskOptions) -> Iterator[Instance]:
    """All requests of the tasks."""
    for task in load_tasks(options)["tasks"].values():
        task.build_all_requests(limit=options.limit, rank=0, world_size=1)
        yield from task.instances


def timed(model: Any, kind: str, instances: list[Instance]) -> tuple[list[Any], float, float]:
    """The results of requests of one kind, and the seconds and processor seconds that they took."""
    began, used = time.perf_counter(), time.process_time()
    found = getattr(model, kind)(instances, disable_tqdm=True)
    return found, time.perf_counter() - began, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("model", "hf", "mmlu", "text"):
        parser.add_argument(f"-{name}", required=True)
    parser.add_argument("-limit", type=int, default=40, help="questions of each subject of MMLU")
    parser.add_argument("-num_fewshot", type=int, nargs="+", default=[0, 5])
    parser.add_argument("-texts", type=int, default=8)
    parser.add_argument("-words", type=int, default=400, help="words of each text")
    parser.add_argument("-answers", type=int, default=20)
    parser.add_argument("-repeat", type=int, default=1)
    parser.add_argument("-rounding", action="store_true", help="compare `hf` with itself too, in float64 and eager")
    given = parser.parse_args()
    ours = HarnessModel(open_engine(given.model, dtype="fp32", device="cpu"), batch_size=4)
    theirs = HFLM(pretrained=given.hf, dtype="float32", batch_size=4, device="cpu")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    mmlu = [f"mmlu_{subject}" for subject in SUBJECTS]
    cases = [(f"MMLU, {shots} examples", "loglikelihood", mmlu, shots) for shots in given.num_fewshot]
    cases += [
        ("texts", "loglikelihood_rolling", ["local_rolling"], 0),
        ("answers", "generate_until", ["local_answers"], 0),
    ]
    with tempfile.TemporaryDirectory() as folder:
        local_tasks(Path(folder), Path(given.text), texts=given.texts, words=given.words, answers=given.answers)
        for title, kind, names, shots in cases:
            options = TaskOptions(
                names, folder, given.mmlu, num_fewshot=shots, limit=given.limit if names is mmlu else None
            )
            instances = list(requests(options))
            runs = [[timed(model, kind, instances) for model in (ours, theirs)] for _ in range(given.repeat)]
            found, wanted = runs[0][0][0], runs[0][1][0]
            (ours_s, ours_cpu), (hf_s, hf_cpu) = (
                [min(run[side][clock] for run in runs) for clock in (1, 2)] for side in (0, 1)
            )
            print(f"{title}: {len(instances)} requests; {difference(found, wanted)}", flush=True)
            if given.rounding and names == ["local_rolling"]:
                for name, options in (("float64", {"dtype": "float64"}), ("eager attention", EAGER)):
                    other, *_ = timed(HFLM(pretrained=given.hf, device="cpu", **options), kind, instances)
                    print(f"  hf in {name}: from hf {difference(wanted, other)}, from ours {difference(found, other)}")
            print(f"  {ours_cpu:.1f} s of the processor ({ours_s:.1f} s); hf {hf_cpu:.1f} s ({hf_s:.1f} s)", flush=True)


def difference(found: list[Any], wanted: list[Any]) -> str:
    if isinstance(found[0], str):
        return f"{sum(a == b for a, b in zip(found, wanted, strict=True))} of {len(found)} answers identical"
    if isinstance(found[0], tuple):
        same = sum(a[1] == b[1] for a, b in zip(found, wanted, strict=True))
        largest = max(abs(a[0] - b[0]) for a, b in zip(found, wanted, strict=True))
        return f"largest difference {largest:.1e}, {same} of {len(found)} is-greedy flags equal"
    return f"largest difference {max(abs(a - b) for a, b in zip(found, wanted, strict=True)):.1e}"


if __name__ == "__main__":
    main()
