"""Speed of writing and reading token shards, compared with tokenising the same text on the fly.

`python docs/benchmarks/packed.py [LINES] [TOKENS_A_LINE]` makes a corpus of random words and a SentencePiece model
from it, packs it, and prints tokens per second of each stage, in one process and one thread.
"""

from __future__ import annotations

import io
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sentencepiece
import torch

from onmt_llm.config.checkpoint import CheckpointConfig, SpecialTokens
from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.data.pack import pack
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.token_shards.records import TokenDecoder
from onmt_llm.data.token_shards.shard import PackReader
from onmt_llm.data.transforms.subword import SubwordConfig
from onmt_llm.text.codec import Codec
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from onmt_llm.text.vocab import Vocab

BUCKET = 2048


def make_corpus(folder: Path, lines: int, words: int) -> tuple[Path, Path]:
    draw = random.Random(1)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in "aeiou"]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(30_000)]
    weights = [1 / (rank + 5) for rank in range(len(lexicon))]
    corpus, model = folder / "corpus.txt", folder / "sp.model"
    with corpus.open("w") as file:
        for _ in range(lines):
            file.write(" ".join(draw.choices(lexicon, weights, k=draw.randint(words // 2, words * 3 // 2))) + "\n")
    content = io.BytesIO()
    with corpus.open() as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=islice(file, 20_000),
            model_writer=content,
            vocab_size=8000,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            minloglevel=2,
        )
    model.write_bytes(content.getvalue())
    return corpus, model


def timed(what: str, work: Callable[[], int]) -> None:
    began = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - began
    print(f"| {what} | {tokens / 1e6:.2f} | {seconds:.2f} | {tokens / seconds / 1e6:.2f} |")


def main() -> None:
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    words = int(sys.argv[2]) if len(sys.argv) > 2 else 60
    torch.set_num_threads(1)  # the import of torch is not measured
    with tempfile.TemporaryDirectory() as folder:
        corpus, model = make_corpus(Path(folder), lines, words)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
        vocab = Vocab([processor.id_to_piece(i) for i in range(len(processor))], SpecialTokens())
        text = CorpusConfig(path_src=str(corpus), transforms=["sentencepiece"])
        tokens = text.model_copy(update={"path_packed": f"{folder}/packs"})
        data = DataConfig(transform_options={"subword": SubwordConfig(src_subword_model=str(model))})
        batching = BatchConfig(batch_size=8192, batch_type="tokens", bucket_size=BUCKET)
        config = CheckpointConfig(model=ModelConfig(encoder_layers=0), specials=vocab.specials)
        codec = Codec(config, vocab, WhitespaceTokenizer())

        def write() -> int:
            written = pack(PipelineSpec({"x": tokens}, data, codec), Path(folder))
            return sum(shard["tokens"] for shard in PackReader("x", written["x"]).index["shards"])

        def batches(config: CorpusConfig) -> Callable[[], int]:
            def one_pass() -> int:
                pipeline = Pipeline(PipelineSpec({"x": config}, data, codec, seed=1, batching=batching))
                stream: Iterable[object] = pipeline
                for _ in stream:
                    if pipeline.counts["x"].read >= lines:
                        return pipeline.counts["x"].tokens
                return 0

            return one_pass

        print("| stage | M tokens | s | M tokens/s |\n|---|--:|--:|--:|")
        timed("pack (text to shards)", write)
        (packed,) = Path(folder, "packs").iterdir()
        reader = PackReader("x", packed)

        def read() -> int:
            return sum((len(record.parts[1]) // 4) for record in iter(reader.read, None))

        def decode() -> int:
            reader.rewind()
            decoder = TokenDecoder("x", reader.parts, vocab_size=len(vocab), src_vocab_size=len(vocab))
            total = 0
            while records := list(islice(iter(reader.read, None), BUCKET)):
                total += sum(len(encoded.tgt) for _, encoded in decoder(records, CorpusCounts()))
            return total

        timed("read records", read)
        timed("read records to ids", decode)
        timed("packed to batches", batches(tokens))
        timed("text to batches", batches(text))


if __name__ == "__main__":
    main()
