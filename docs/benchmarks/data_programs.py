"""The programs that `data.py` times, each in a separate process: `python data_programs.py NAME JOB.json`.

Each reads the job's corpus as training would (tokenise, drop long examples, ids, padded batches of a number of tokens)
and prints tokens, examples and seconds as JSON: from the end of the first bucket, when models are loaded and workers
run, to the end of the last. Our package is imported only where it is timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

Job = dict[str, Any]


def bare(job: Job) -> Iterator[tuple[int, int]]:
    """SentencePiece alone: lines in, ids out."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=job["model"])
    with open(job["corpus"], encoding="utf-8", newline="\n") as file:
        while chunk := [line[:-1].replace("｟newline｠", "\n") for line in islice(file, 2048)]:
            ids = model.encode(chunk, out_type=int, num_threads=job["threads"])
            yield sum(map(len, ids)), len(ids)


def ours(job: Job) -> Iterator[tuple[int, int]]:
    """onmt_llm's pipeline."""
    import torch  # noqa: F401  (a training process imports it anyway)

    pipeline = pipeline_of(job)
    for batch in pipeline:
        yield batch.num_targets, batch.num_examples


def pipeline_of(job: Job) -> Any:
    """Our pipeline over the job's corpus."""
    from onmt_llm.config.checkpoint import CheckpointConfig, SpecialTokens
    from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
    from onmt_llm.config.model import ModelConfig
    from onmt_llm.data.pipeline import Pipeline
    from onmt_llm.data.spec import PipelineSpec
    from onmt_llm.data.transforms.filters import FilterTooLongConfig
    from onmt_llm.text.codec import Codec
    from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
    from onmt_llm.text.vocab import Vocab

    if not job["cache"]:
        SentencePieceTokenizer._words = None  # type: ignore[assignment]
    with open(job["vocab"], encoding="utf-8", newline="\n") as file:  # a piece may end with "\r"
        tokens = ["<unk>", "<blank>", "<s>", "</s>", *file.read().split("\n")[:-1]]
    specials = SpecialTokens(pad="<blank>", add_bos=True)
    config = CheckpointConfig(model=ModelConfig(encoder_layers=0), specials=specials)
    data = DataConfig(
        transforms=["sentencepiece", "filtertoolong"],
        shuffle=job.get("shuffle", "none"),
        index_cache=job.get("index"),
        transform_options={"filtertoolong": FilterTooLongConfig(src_seq_length=job["longest"])},
    )
    batching = BatchConfig(
        batch_type="tokens",
        batch_size=job["batch_size"],
        bucket_size=job["bucket_size"],
        num_workers=job["workers"],
    )
    codec = Codec(config, Vocab(tokens, specials), SentencePieceTokenizer(job["model"]))
    corpora = {"corpus": CorpusConfig(path_src=job["corpus"])}
    return Pipeline(PipelineSpec(corpora, data, codec, seed=1, batching=batching))


def opennmt(job: Job) -> Iterator[tuple[int, int]]:
    """OpenNMT-py 3.5."""
    from onmt.bin.train import _get_parser
    from onmt.inputters.dynamic_iterator import build_dynamic_dataset_iter
    from onmt.train_single import _init_train
    from onmt.utils.parse import ArgumentParser

    options, _ = _get_parser().parse_known_args(["-config", _yaml(job, _onmt_settings(job))])
    ArgumentParser.validate_train_opts(options)
    ArgumentParser.update_model_opts(options)
    ArgumentParser.validate_model_opts(options)
    _, vocabs, transforms = _init_train(options)
    batches = build_dynamic_dataset_iter(options, transforms, vocabs, task="train", copy=False)
    for batch, _ in batches:
        yield int(batch["srclen"].sum()), len(batch["srclen"])


def eole(job: Job) -> Iterator[tuple[int, int]]:
    """eole 0.6."""
    from eole.config.run import TrainConfig
    from eole.inputters.dynamic_iterator import build_dynamic_dataset_iter
    from eole.train_single import TrainingInitializer

    settings = _onmt_settings(job)
    training = ("batch_type", "batch_size", "bucket_size", "num_workers", "model_path")
    config = TrainConfig(
        **{key: value for key, value in settings.items() if key not in training},
        transforms_configs={
            "sentencepiece": {"src_subword_model": job["model"], "tgt_subword_model": job["model"]},
            "filtertoolong": {"src_seq_length": job["longest"], "tgt_seq_length": job["longest"]},
        },
        training={**{key: settings[key] for key in training if key in settings}, "world_size": 1, "gpu_ranks": []},
        model={"architecture": "transformer_lm", "hidden_size": 64, "layers": 1, "heads": 4, "transformer_ff": 64},
    )
    context = TrainingInitializer(config).initialize()
    batches = build_dynamic_dataset_iter(context.config, context.transforms, context.vocabs, task="train")
    for batch, _ in batches:
        yield int(batch["srclen"].sum()), len(batch["srclen"])


def datasets(job: Job) -> Iterator[tuple[int, int]]:
    """Hugging Face datasets, streaming, with the same bucket and batches around it."""
    import sentencepiece
    import torch
    from datasets import load_dataset

    model = sentencepiece.SentencePieceProcessor(model_file=job["model"])

    def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        texts = [text.replace("｟newline｠", "\n") for text in rows["text"]]
        ids = model.encode(texts, out_type=int, num_threads=job["threads"], add_bos=True, add_eos=True)
        return {"ids": ids}

    stream = load_dataset("text", data_files=job["corpus"], split="train", streaming=True)
    stream = stream.map(encode, batched=True, batch_size=2048, remove_columns=["text"])
    rows = (row["ids"] for row in stream if len(row["ids"]) <= job["longest"])
    while bucket := sorted(islice(rows, job["bucket_size"]), key=len):
        for batch in _cut(bucket, job["batch_size"]):
            tensors = [torch.tensor(ids) for ids in batch]
            torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
            yield sum(map(len, batch)), len(batch)


def _cut(bucket: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    batch: list[list[int]] = []
    for ids in bucket:
        if batch and (len(batch) + 1) * len(ids) > size:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def _onmt_settings(job: Job) -> Job:
    """Settings with the same names in OpenNMT-py and eole."""
    return {
        "data": {"corpus": {"path_src": job["corpus"], "weight": 1, "transforms": ["sentencepiece", "filtertoolong"]}},
        "transforms": ["sentencepiece", "filtertoolong"],
        "src_vocab": job["vocab"],
        "share_vocab": True,
        "batch_type": "tokens",
        "batch_size": job["batch_size"],
        "bucket_size": job["bucket_size"],
        "num_workers": job["workers"],
        "seed": 1,
        **(
            {
                "src_subword_model": job["model"],
                "tgt_subword_model": job["model"],
                "src_seq_length": job["longest"],
                "tgt_seq_length": job["longest"],
                "model_task": "lm",
                "decoder_type": "transformer_lm",
                "encoder_type": "transformer_lm",
                "save_model": f"{job['work']}/opennmt",
            }
            if job["program"] == "opennmt"
            else {"model_path": f"{job['work']}/eole", "tgt_vocab": job["vocab"], "save_data": f"{job['work']}/eole"}
        ),
    }


def _yaml(job: Job, settings: Job) -> str:
    import yaml

    path = f"{job['work']}/{job['program']}.yaml"
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(settings, file)
    return path


def timed(counts: Iterable[tuple[int, int]], first: int, last: int) -> dict[str, float]:
    """Tokens, examples and seconds between the `first` and the `last` example."""
    tokens = done = 0
    start: tuple[int, int, float] | None = None
    for number, rows in counts:
        tokens, done = tokens + number, done + rows
        if done >= first and start is None:
            start = tokens, done, time.perf_counter()
        if done >= last:
            break
    assert start is not None
    return {"tokens": tokens - start[0], "examples": done - start[1], "seconds": time.perf_counter() - start[2]}


PROGRAMS: dict[str, Callable[[Job], Iterator[tuple[int, int]]]] = {
    each.__name__: each for each in (bare, ours, opennmt, eole, datasets)
}

if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as job_file:
        the_job = json.load(job_file)
    found = timed(PROGRAMS[the_job["program"]](the_job), the_job["first"], the_job["last"])
    print(json.dumps(found), flush=True)
    os._exit(0)  # some programs' workers do not exit by themselves
