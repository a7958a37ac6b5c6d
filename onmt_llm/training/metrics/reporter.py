"""`Reporter`: collect the metrics of a run, and write them to the console and to the sinks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.optional import require
from onmt_llm.training.metrics.sinks import OpenSink, Sink
from onmt_llm.training.metrics.totals import Totals, ValidationResult


def duration(seconds: float) -> str:
    """Seconds as `45s`, `12m05s` or `3h07m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


@dataclass(frozen=True)
class MetricSources:
    """What a reporter asks for at each report, besides the totals of the updates.

    Attributes:
        data: Counts of the corpora so far, as `data/<corpus>/...`; called on all ranks. None = not reported.
        hardware: Speed and memory of the hardware; called with the seconds since the last report. None = not reported.
        corpora: Names of the corpora that the totals separate, in order.
    """

    data: Callable[[], dict[str, float]] | None = None
    hardware: Callable[[float], dict[str, float]] | None = None
    corpora: Sequence[str] = ()


class Reporter:
    """Adds up the metrics of the updates and reports them.

    Args:
        start_step: Updates done before this process started.
        train_steps: Last update.
        report_every: Updates between two reports.
        progress: "auto" (a bar if stderr is a terminal, otherwise lines), "bar", "line" or "none".
        sinks: Where metrics are written, by name.
        resumed: `state()` of the resumed run.
        sources: Further metrics.
    """

    def __init__(
        self,
        *,
        start_step: int,
        train_steps: int,
        report_every: int = 50,
        progress: str = "auto",
        sinks: Mapping[str, OpenSink] | None = None,
        resumed: Mapping[str, Any] | None = None,
        sources: MetricSources = MetricSources(),
    ) -> None:
        self._start_step = start_step
        self._train_steps = train_steps
        self._report_every = report_every
        self._progress = _resolve_progress(progress)
        self._sources = sources
        resumed = resumed or {}
        self._sinks: dict[str, Sink] = {}
        self._places: dict[str, str] = {}
        for name, build in (sinks or {}).items():
            self._open(name, build, resumed.get(name) or "")
        self._began = self._window_began = time.perf_counter()
        single = resumed.get("corpora", {})
        by_corpus = tuple((nll, tokens) for nll, tokens in (single.get(name, (0.0, 0.0)) for name in sources.corpora))
        self._window = Totals.from_values(resumed.get("window", ()), by_corpus)
        self._elapsed_before = float(resumed.get("elapsed", 0.0))
        self._waited = 0.0
        self._last: tuple[float, float] | None = None
        self._bar: Any = None
        self._cleanup = ExitStack()

    def __enter__(self) -> Reporter:
        if self._progress == "bar":
            tqdm = require("tqdm", "progress: bar")
            redirect = require("tqdm.contrib.logging", "progress: bar").logging_redirect_tqdm
            self._cleanup.enter_context(redirect([logger]))
            self._bar = self._cleanup.enter_context(
                tqdm.tqdm(total=self._train_steps, initial=self._start_step, unit="step", dynamic_ncols=True)
            )
        self._began = self._window_began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._cleanup.close()
        for name in list(self._sinks):
            self._guard(name, lambda sink: sink.close(kind is not None))

    def state(self) -> dict[str, Any]:
        """Plain data from which another reporter continues as this one would."""
        return {
            "window": self._window.values(),
            "corpora": {
                name: [part.nll, part.tokens] for name, part in self._window.corpora(self._sources.corpora).items()
            },
            "elapsed": self._elapsed_before + time.perf_counter() - self._began,
            **self._places,
        }

    def update(self, step: int, totals: Totals, *, rate: float, grad_norm: float, waited: float = 0.0) -> None:
        """Add update `step`, and the seconds that it waited for its batches; report if it is time."""
        self._window = self._window + totals
        self._waited += waited
        if self._bar is not None:
            self._bar.update(1)
        self._last = rate, grad_norm
        if step % self._report_every == 0 or step == self._train_steps:
            self._report(step, rate, grad_norm)

    def finish(self, step: int) -> None:
        """Report the updates since the last report: the run ends after update `step`, before `train_steps`."""
        if self._window.batches and self._last is not None:
            self._report(step, *self._last)

    def validation(self, step: int, result: ValidationResult, *, patience: int | None = None) -> None:
        """Report a validation, and how many more without improvement are tolerated (None = any number)."""
        totals = result.totals
        logger.info(
            "Validation at step %d; acc: %.2f; ppl: %.4g; xent: %.4f; sents: %d%s%s",
            *(step, totals.accuracy, totals.ppl, totals.xent, totals.examples, _further(totals)),
            _listed(result.scores_of()),
        )
        for name, part in result.corpora.items():
            scores = _listed(result.scores_of(name))
            logger.info("  %s: acc: %.2f; ppl: %.4g; xent: %.4f%s", name, part.accuracy, part.ppl, part.xent, scores)
        self._send("valid", step, result.metrics | ({} if patience is None else {"patience": patience}))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """A context for validation and saving, whose time does not count for the training speed."""
        began = time.perf_counter()
        yield
        self._window_began += time.perf_counter() - began

    def _report(self, step: int, rate: float, grad_norm: float) -> None:
        now = time.perf_counter()
        seconds = max(now - self._window_began, 1e-9)
        elapsed = now - self._began
        left = elapsed / (step - self._start_step) * (self._train_steps - step)
        totals = self._window
        metrics = {
            **totals.metrics,
            "lr": rate,
            "grad_norm": grad_norm,
            "tokens_per_second": totals.tokens / seconds,
            "src_tokens_per_second": totals.src_tokens / seconds,
            "positions_per_second": totals.positions / seconds,
            "tokens": totals.tokens,
            "examples": totals.examples,
            "elapsed": self._elapsed_before + elapsed,
            "data_wait": self._waited / seconds,
            **({} if self._sources.hardware is None else self._sources.hardware(seconds)),
            **self._per_corpus(totals),
        }
        share = f"MFU {100 * metrics['mfu']:.0f}%; " if "mfu" in metrics else ""
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"acc {totals.accuracy:.1f} ppl {totals.ppl:.4g} lr {rate:.3g} {metrics['tokens_per_second']:.0f} tok/s"
            )
        elif self._progress == "line":
            logger.info(
                "Step %d/%d; acc: %.2f; ppl: %.4g; xent: %.4f; lr: %.3g; sents: %d%s; "
                "%s; data wait %.0f%%; %s%s; ETA %s",
                *(step, self._train_steps, totals.accuracy, totals.ppl, totals.xent, rate, totals.examples),
                *(_further(totals), _pace(totals, seconds), 100 * metrics["data_wait"], share),
                *(duration(elapsed), duration(left)),
            )
        self._send("progress", step, metrics | ({} if self._sources.data is None else self._sources.data()))
        self._window, self._waited = Totals(), 0.0
        self._window_began = now

    def _per_corpus(self, totals: Totals) -> dict[str, float]:
        """`<corpus>/xent`, `<corpus>/ppl` and `<corpus>/tokens` of the corpora with trained tokens."""
        return {
            f"{name}/{metric}": value
            for name, part in totals.corpora(self._sources.corpora).items()
            for metric, value in {"xent": part.xent, "ppl": part.ppl, "tokens": part.tokens}.items()
        }

    def _open(self, name: str, build: OpenSink, place: str) -> None:
        """Open a sink. If that fails (a full disk, an unreachable server), training continues without it."""
        try:
            self._sinks[name] = build(place)
        except (DataError, UnsupportedError):
            raise  # the file holds something else, or a package is missing
        except Exception as error:
            logger.warning("Metrics are not written by %s: %s", name, error)
            return
        self._places[name] = self._sinks[name].place

    def _send(self, split: str, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics to every sink."""
        for name in list(self._sinks):
            self._guard(name, lambda sink: sink.write(split, step, metrics))

    def _guard(self, name: str, use: Callable[[Sink], None]) -> None:
        """Use a sink. If it fails (a full disk), it is dropped with a warning and training continues."""
        try:
            use(self._sinks[name])
        except Exception as error:
            del self._sinks[name]
            logger.warning("Metrics are no longer written by %s: %s", name, error)


def _listed(scores: Mapping[str, float]) -> str:
    return "".join(f"; {name}: {score:.2f}" for name, score in scores.items())


def _further(totals: Totals) -> str:
    """For a log line: margin and accuracy of the rewards of a preference loss, or the balance of experts."""
    if totals.balance:
        return "; balance: {balance:.4g}".format(**totals.balance_metrics)
    if not totals.rewards.preferences:
        return ""
    return "; margin: {reward_margin:.3g}; reward acc: {reward_accuracy:.1f}".format(**totals.reward_metrics)


def _pace(totals: Totals, seconds: float) -> str:
    """Micro-batch size and speed, as OpenNMT-py prints them: source/target/examples; source/target tokens."""
    batches = max(totals.batches, 1)
    tokens, examples = totals.tokens / batches, totals.examples / batches
    speed = totals.tokens / seconds
    if totals.src_tokens:
        read = totals.src_tokens
        return f"bsz: {read / batches:.0f}/{tokens:.0f}/{examples:.0f}; {read / seconds:.0f}/{speed:.0f} tok/s"
    # A language model also reads tokens that it is not trained on.
    all_positions = totals.positions / seconds
    return f"bsz: {tokens:.0f}/{examples:.0f}; {speed:.0f} tok/s ({all_positions:.0f} with masked and padding)"


def _resolve_progress(progress: str) -> str:
    if progress != "auto":
        return progress
    return "bar" if sys.stderr.isatty() else "line"
