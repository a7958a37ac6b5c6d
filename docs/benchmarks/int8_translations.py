"""What int8 releases of encoder-decoders lose, by quality, on held-out pairs: divergence from the model, and speed.

    python docs/benchmarks/int8_translations.py WORK [STEPS]

Two models are trained on recipes/wmt_seq2seq's numbers and their names (or taken from WORK): `nllb` has norms before
its layers, as NLLB and M2M100, and `marian` after the residual sums, as Marian and Opus-MT. Calibration is on 2,000
training sources, the comparison on the 1,000 test pairs (teacher forcing). Speed is CPU time of one thread for greedy
translations of the test sources: the best of all rounds, in which the releases alternate.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ctranslate2
import numpy as np

from onmt_llm.commands import COMMANDS
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.ct2.translator import Ct2Translator
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.releasing import NumberFormat, release
from onmt_llm.releasing.verify import Comparison
from onmt_llm.text.codec import Codec

RECIPE = Path(__file__).parents[2] / "recipes" / "wmt_seq2seq"
SHAPES = {"nllb": "pre", "marian": "post"}
"""`norm_position` of each model."""
CALIBRATION_LINES = 2000
ROUNDS = 3


@dataclass(frozen=True)
class Pair:
    """A source, its target with start and end token, and the ids of the target."""

    source: list[str]
    target: list[str]
    ids: list[int]


def train(work: Path, steps: int) -> None:
    """Train the models of `SHAPES` that are not in WORK yet."""
    config = work / "tiny.yaml"
    if not config.exists():
        import runpy

        runpy.run_path(str(RECIPE / "make_numbers.py"))["write"](work / "numbers")
        config.write_text((RECIPE / "tiny.yaml").read_text().replace("numbers/", f"{work}/numbers/"))
        learn = ["-learn_subwords", "-learn_subwords_size", "327", "-n_sample", "-1"]
        assert COMMANDS["onmt_llm_build_vocab"].call(["-config", str(config), *learn]) == 0
    for name, norm_position in SHAPES.items():
        if not (work / f"{name}_step_{steps}").exists():
            words = ["-config", str(config), "-norm_position", norm_position, "-save_model", str(work / name)]
            words += ["-train_steps", str(steps), "-save_checkpoint_steps", str(steps), "-valid_steps", str(steps)]
            assert COMMANDS["onmt_llm_train"].call(words) == 0


def number_formats(norm_position: str, calibration: str) -> dict[str, NumberFormat]:
    """The releases of a model, by what the tables call them."""
    formats = {}
    for suffix, keep_float in (("", ()), (", down_proj float", ("down_proj",))):
        formats[f"plain{suffix}"] = NumberFormat("int8", "plain", keep_float=keep_float)
        if norm_position == "pre":
            formats[f"rotated{suffix}"] = NumberFormat("int8", "rotated", keep_float=keep_float)
        formats[f"calibrated{suffix}"] = NumberFormat("int8", "calibrated", calibration, keep_float=keep_float)
    return {"float32": NumberFormat("float32"), **formats}


def read_pairs(work: Path, codec: Codec) -> list[Pair]:
    lines = [(work / f"numbers/test.{side}").read_text(encoding="utf-8").splitlines() for side in ("digits", "words")]
    pairs = []
    for digits, words in zip(*lines, strict=True):
        target = [*codec.start_tokens, *codec.tokenizer.encode(words), codec.vocab.specials.eos or ""]
        pairs.append(Pair(codec.src_tokenizer.encode(digits), target, codec.vocab.ids(target)))
    return pairs


def forced_logits(translator: ctranslate2.Translator, pairs: Sequence[Pair]) -> Iterator[np.ndarray]:
    """For each pair, logits (T, V) of the token after each of the target but the last.

    CTranslate2 reads the common beginning of a batch's prefixes at once and forces the rest token by token, with the
    logits of each step. So every batch has an empty prefix too.
    """
    for pair in pairs:
        body = pair.target[1:]
        result, _ = translator.translate_batch(
            [pair.source] * 2,
            [body, []],
            beam_size=1,
            max_decoding_length=len(body),
            end_token=[],
            return_logits_vocab=True,
        )
        yield np.stack([np.array(step.to(ctranslate2.DataType.float32)) for step in result.logits[0]]).reshape(
            len(body), -1
        )


def decoding_seconds(engines: dict[str, Ct2Translator], sources: list[list[str]]) -> dict[str, float]:
    best = dict.fromkeys(engines, math.inf)
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            start = time.process_time()
            engine.generate(sources, GenerationConfig(max_length=64), batch_size=32)
            best[name] = min(best[name], time.process_time() - start)
    return best


def measure(work: Path, name: str, steps: int) -> None:
    """Print the table of one model."""
    model = work / f"{name}_step_{steps}"
    engine = TorchEngine.open([model], device="cpu", dtype="fp32")
    pairs = read_pairs(work, engine.codec)
    reference = [engine.logits(pair.target, source=pair.source)[:-1] for pair in pairs]
    lines = (work / "numbers/train.digits").read_text(encoding="utf-8").splitlines()
    engines, comparisons = {}, {}
    for what, numbers in number_formats(SHAPES[name], "\n".join(lines[:CALIBRATION_LINES])).items():
        words = [name, numbers.quantization, numbers.quality, *numbers.keep_float]
        directory = work / "-".join(filter(None, words))
        if not directory.exists():
            release(model, directory, quantization=numbers, verify="off")
        kind = "int8" if numbers.is_int8 else "float32"
        translator = ctranslate2.Translator(str(directory), compute_type=kind, intra_threads=1)
        comparisons[what] = Comparison(compute_type=kind)
        for pair, ours_TV, theirs_TV in zip(pairs, reference, forced_logits(translator, pairs), strict=True):
            comparisons[what].add(ours_TV, theirs_TV, pair.ids)
        engines[what] = Ct2Translator.open(directory, device="cpu", compute_type=kind, threads=1)
    seconds = decoding_seconds(engines, [pair.source for pair in pairs])
    print(f"\n{name}: {comparisons['plain'].positions} tokens\n")
    print("| release | mean KL | top-1 % | perplexity | ratio | speed |\n|---|--:|--:|--:|--:|--:|")
    for what, comparison in comparisons.items():
        figures = comparison.figures()
        print(
            f"| {what} | {figures['mean_kl']:.5f} | {100 * figures['top1_agreement']:.1f} | "
            f"{figures['perplexity_release']:.4f} | {figures['perplexity_ratio']:.4f} | "
            f"{seconds['plain'] / seconds[what]:.2f} |",
            flush=True,
        )


def main() -> None:
    work, steps = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 2000
    work.mkdir(parents=True, exist_ok=True)
    train(work, steps)
    for name in SHAPES:
        measure(work, name, steps)


if __name__ == "__main__":
    main()
