"""Verify a CTranslate2 release: compare its predictions with those of the model on a text (teacher forcing)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onmt_llm.checkpoint.directory import CT2_MODEL_FILE
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.release import Quality
from onmt_llm.errors import CheckpointError, DataError
from onmt_llm.generate.ct2.generator import Ct2Generator, log_softmax
from onmt_llm.generate.ct2.model import stored_compute_type
from onmt_llm.generate.ct2.translator import Ct2Translator
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.log import logger
from onmt_llm.nn.device import available_memory
from onmt_llm.releasing.blockwise import Blockwise
from onmt_llm.releasing.int8 import PAIR_LIMIT
from onmt_llm.releasing.int8_products import int8_instructions, largest_neighbour_sum
from onmt_llm.releasing.number_format import NumberFormat
from onmt_llm.releasing.verify_translations import BOUNDS as TRANSLATION_BOUNDS
from onmt_llm.releasing.verify_translations import compare_translations, translate
from onmt_llm.text.codec import Codec

Verify = Literal["strict", "warn", "off"]
ReleaseReport = dict[str, Any]

WINDOW = 256
"""Tokens per window; the windows are independent."""

_ROWS = 32
"""Positions that are compared at a time: over a large vocabulary, intermediate results take much memory."""

BOUNDS: dict[str, dict[str, float]] = {
    "float32": {"max_abs_dlogit": 1e-3},
    "float16": {"mean_kl": 0.02},
    "bfloat16": {"mean_kl": 0.02},
    "int16": {"mean_kl": 0.02},
    "int8": {"mean_kl": 0.1, "perplexity_ratio": 1.05},
    "int8_float32": {"mean_kl": 0.1, "perplexity_ratio": 1.05},
    "int8_float16": {"mean_kl": 0.1, "perplexity_ratio": 1.05},
    "int8_bfloat16": {"mean_kl": 0.1, "perplexity_ratio": 1.05},
}
"""Upper bounds of the figures for each quantisation; those of int8 are for the quality "plain"."""

INT8_BOUNDS: dict[Quality, dict[str, float]] = {
    "plain": {},
    "rotated": {"mean_kl": 0.05, "perplexity_ratio": 1.04},
    "calibrated": {"mean_kl": 0.04, "perplexity_ratio": 1.03},
}
"""What each quality changes in the bounds of int8 releases of language models; docs/benchmarks/int8_quality.md has
measurements."""


@dataclass
class Comparison:
    """Sums of differences between two models' predictions, over all positions of a text.

    Attributes:
        compute_type: What the release really ran in.
    """

    max_abs_dlogit: float = 0.0
    kl_sum: float = 0.0
    agreed: int = 0
    positions: int = 0
    nll_sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    predicted: int = 0
    compute_type: str = ""

    def add(self, ours_TV: np.ndarray, theirs_TV: np.ndarray, ids_T: Sequence[int]) -> None:
        """Add one window: both models' logits (T, V) for the token after each of the ids."""
        for start in range(0, len(ids_T), _ROWS):
            end = start + _ROWS
            self._add_rows(ours_TV[start:end], theirs_TV[start:end], ids_T[start + 1 : end + 1])

    def _add_rows(self, ours_TV: np.ndarray, theirs_TV: np.ndarray, next_ids: Sequence[int]) -> None:
        self.max_abs_dlogit = max(self.max_abs_dlogit, _largest(np.abs(ours_TV - theirs_TV)))
        p_TV, q_TV = log_softmax(ours_TV), log_softmax(theirs_TV)
        self.kl_sum += float((np.exp(p_TV) * (p_TV - q_TV)).sum())
        self.agreed += int((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).sum())
        self.positions += len(ours_TV)
        rows = np.arange(len(next_ids))
        for which, log_TV in enumerate((p_TV, q_TV)):
            self.nll_sums[which] -= float(log_TV[rows, list(next_ids)].sum())
        self.predicted += len(next_ids)

    def figures(self) -> dict[str, float]:
        """The figures of the report."""
        ours, theirs = (math.exp(min(nll / self.predicted, 700.0)) for nll in self.nll_sums)
        return {
            "max_abs_dlogit": self.max_abs_dlogit,
            "mean_kl": self.kl_sum / self.positions,
            "top1_agreement": self.agreed / self.positions,
            "perplexity_model": ours,
            "perplexity_release": theirs,
            "perplexity_ratio": theirs / ours,
            "n_tokens": self.positions,
        }


class Reference:
    """A language model's predictions on a text: computed once, to compare any number of releases with.

    The model is run block by block in float32, so it is never in memory as a whole.

    Args:
        checkpoint: The model.
        text: The text; None = the package's verification_text.txt.

    Attributes:
        windows: The text's tokens, in independent windows.

    Raises:
        DataError: The text is too short.
    """

    def __init__(self, checkpoint: Checkpoint, text: str | None = None) -> None:
        codec = checkpoint.codec()
        self.windows = text_windows(checkpoint, codec, bundled_text() if text is None else text)
        self._ids = [codec.vocab.ids(window) for window in self.windows]
        self._model = Blockwise(checkpoint)
        self._hidden = self._model.run(self._ids)

    def compare(self, directory: Path, quantization: str, compute_type: str | None = None) -> Comparison:
        """Compare with a finished release that is not published yet.

        Args:
            directory: The release.
            quantization: Its quantisation.
            compute_type: What CTranslate2 computes in; None = what suits the quantisation on a CPU.
        """
        compute_type = compute_type or stored_compute_type(quantization, "cpu")
        engine = Ct2Generator.open(directory, device="cpu", compute_type=compute_type, is_new=True)
        comparison = Comparison(compute_type=engine.compute_type)
        for window, ids, hidden_TD in zip(self.windows, self._ids, self._hidden, strict=True):
            comparison.add(self._model.logits(hidden_TD).numpy(), engine.logits(window), ids)
        return comparison

    def compare_checkpoint(self, checkpoint: Checkpoint) -> Comparison:
        """Compare with another checkpoint with the same vocabulary, which is run block by block too."""
        other, comparison = Blockwise(checkpoint), Comparison(compute_type="float32")
        for ids, ours_TD, theirs_TD in zip(self._ids, self._hidden, other.run(self._ids), strict=True):
            comparison.add(self._model.logits(ours_TD).numpy(), other.logits(theirs_TD).numpy(), ids)
        return comparison


def verify_release(
    model: Path,
    directory: Path,
    numbers: NumberFormat,
    *,
    strict: bool,
    text: str | None,
    plain: Path | None = None,
) -> ReleaseReport:
    """Compare a finished release with its checkpoint.

    Args:
        model: The checkpoint.
        directory: The release, not published yet.
        numbers: Its quantisation and quality, which determine the bounds.
        strict: Fail if a figure exceeds its bound, instead of only warning.
        text: Text to compare on; None = the package's verification_text.txt.
        plain: Another release of the checkpoint, to be measured too.

    Returns:
        Figures, bounds, verdict and what was not compared, for the report; the figures of the other release as
        `plain_figures`.

    Raises:
        CheckpointError: `strict`, and a figure exceeds its bound.
        DataError: The text is too short.
    """
    quantization = numbers.quantization or "float32"
    measured = _measure(model, directory, quantization, text, plain)
    if numbers.is_int8:
        measured = _with_int8(measured, directory, numbers.quality or "plain")
    return with_verdict(measured, quantization, strict=strict, instead=_better(numbers))


def with_verdict(measured: dict[str, Any], quantization: str, *, strict: bool, instead: str) -> ReleaseReport:
    """What was measured, with the verdict: whether all figures are within their bounds; see `verify_release`.

    Args:
        measured: `figures` and `bounds`.
        quantization: The quantisation, for the message.
        strict: Fail if a figure exceeds its bound, instead of only warning.
        instead: What to try otherwise.

    Raises:
        CheckpointError: `strict`, and a figure exceeds its bound.
    """
    failures = exceeded_bounds(measured["figures"], measured["bounds"])
    if failures and strict:
        raise CheckpointError(
            f"The {quantization} release must predict what its model predicts, but {'; '.join(failures)}. "
            "Nothing was published.",
            hint=f"try {instead}, or check the figures and publish with --verify warn",
        )
    if failures:
        logger.warning("The release exceeds its bounds: %s.", "; ".join(failures))
    return {**measured, "verdict": "fail" if failures else "pass"}


def _with_int8(measured: dict[str, Any], directory: Path, quality: Quality) -> dict[str, Any]:
    """The measurements with what concerns int8: no sum overflows, and stricter bounds for a better quality."""
    bounds = measured["bounds"]
    stricter = {name: bound for name, bound in INT8_BOUNDS[quality].items() if "mean_kl" in bounds}
    largest = largest_neighbour_sum(directory / CT2_MODEL_FILE)
    return {
        **measured,
        "int8_instructions": int8_instructions(),
        "figures": {**measured["figures"], "int8_neighbour_sum": largest},
        "bounds": {**bounds, **stricter, "int8_neighbour_sum": PAIR_LIMIT},
    }


def _better(numbers: NumberFormat) -> str:
    """What may lose less."""
    if not numbers.is_int8:
        return "another quantization"
    calibrate = "--quality calibrated, " if numbers.quality != "calibrated" else ""
    return f"{calibrate}--keep_float down_proj or another quantization"


def bundled_text() -> str:
    """English prose, dialogues, instructions and a letter, written for this comparison."""
    return (files("onmt_llm.releasing") / "verification_text.txt").read_text(encoding="utf-8")


def exceeded_bounds(figures: dict[str, float], bounds: dict[str, float]) -> list[str]:
    """Every figure that exceeds its bound; NaN does."""
    return [
        f"{name} is {figures[name]:.4g} (at most {bound:g})"
        for name, bound in bounds.items()
        if not figures[name] <= bound
    ]


def _measure(model: Path, directory: Path, quantization: str, text: str | None, plain: Path | None) -> dict[str, Any]:
    checkpoint = Checkpoint.open(model)
    text = bundled_text() if text is None else text
    if not checkpoint.config.model.is_decoder_only:
        return _measure_translations(checkpoint, directory, quantization, text, plain)
    reference = Reference(checkpoint, text)
    comparison = reference.compare(directory, quantization)
    logger.info(
        "Compared on %d tokens; %s ran as %s on the CPU.", comparison.positions, quantization, comparison.compute_type
    )
    return {
        "compute_type": comparison.compute_type,
        "reference_dtype": "fp32",
        "reference_memory": "one block of the model",
        "figures": comparison.figures(),
        "bounds": BOUNDS[quantization],
        **({} if plain is None else {"plain_figures": reference.compare(plain, quantization).figures()}),
        **_not_compared(checkpoint.config.model, max(map(len, reference.windows))),
    }


def _not_compared(config: ModelConfig, longest: int) -> dict[str, list[str]]:
    """What the figures say nothing about, for the report; `longest` is the length of the longest text compared."""
    size = config.sliding_window
    if size is None or longest > size:
        return {}
    sentence = f"Texts of more than sliding_window = {size} tokens: the compared ones have at most {longest}."
    logger.warning("Not compared: %s", sentence)
    return {"not_compared": [sentence]}


def _measure_translations(
    checkpoint: Checkpoint, directory: Path, quantization: str, text: str, plain: Path | None
) -> dict[str, Any]:
    # The first engine, which holds the whole model, is freed before the second is loaded.
    dtype = _reference_dtype(checkpoint, quantization)
    torch_engine = TorchEngine.open([checkpoint.path], device="cpu", dtype=dtype)
    languages = torch_engine.codec.config.languages.example
    reference = translate(torch_engine.for_languages(*languages), text)
    del torch_engine

    def open_release(path: Path) -> Ct2Translator:
        compute_type = stored_compute_type(quantization, "cpu")
        engine = Ct2Translator.open(path, device="cpu", compute_type=compute_type, is_new=True)
        return engine.for_languages(*languages)

    engine = open_release(directory)
    figures = compare_translations(reference, engine)
    logger.info(
        "Compared on %d tokens of %d translations; %s ran as %s on the CPU.",
        figures["n_tokens"],
        figures["n_sentences"],
        quantization,
        engine.compute_type,
    )
    return {
        "compute_type": engine.compute_type,
        "reference_dtype": dtype,
        "reference_memory": "the whole model: it translated the text",
        "figures": figures,
        "bounds": TRANSLATION_BOUNDS[quantization],
        **({} if plain is None else {"plain_figures": compare_translations(reference, open_release(plain))}),
    }


def text_windows(checkpoint: Checkpoint, codec: Codec, text: str) -> list[list[str]]:
    """The text's tokens in windows that both the model and CTranslate2 can process at once."""
    config = checkpoint.config.model
    size = min(WINDOW, config.max_position)
    tokens = codec.encode(text)
    specials = checkpoint.config.specials
    start = [specials.bos] if specials.add_bos and specials.bos and tokens[:1] == [specials.bos] else []
    body, step = tokens[len(start) :], size - len(start)
    windows = [[*start, *body[at : at + step]] for at in range(0, len(body), step)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise DataError("The text that a release is verified on must have at least 2 tokens, but has fewer.")
    return windows


def _reference_dtype(checkpoint: Checkpoint, quantization: str) -> str:
    """float32 if it fits in memory; otherwise bf16, whose rounding is small compared with an integer release's."""
    stored = checkpoint.config.model.dtype
    if quantization == "float32" or stored == "fp32":
        return "fp32"
    bytes_in_fp32 = 4 * sum(math.prod(checkpoint.shape(name)) for name in checkpoint.model_names())
    available = available_memory()
    return "fp32" if available is None or bytes_in_fp32 < 0.5 * available else "bf16"


def _largest(values: np.ndarray) -> float:
    """Maximum; NaN counts as infinity."""
    return float(values.max()) if np.isfinite(values).all() else math.inf
