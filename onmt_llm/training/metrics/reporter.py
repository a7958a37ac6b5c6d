"""What a run reports: totals over positions, and where they go (the console, and `sinks`)."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from torch import Tensor

from onmt_llm.data.batching.batch import Batch
from onmt_llm.errors import DataError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.optional import require
from onmt_llm.training.losses.cross_entropy import TokenLoss
from onmt_llm.training.metrics.sinks import OpenSink, Sink

T = TypeVar("T")


@dataclass(frozen=True)
class Totals:
    """Sums over batches, and the figures made of them.

    Attributes:
        loss: Summed training loss, label smoothing included.
        nll: Summed negative log-likelihood of the trained tokens, in nats.
        correct: Trained tokens that the model puts first.
        tokens: Trained tokens.
        examples: Examples.
        positions: All positions that went through the model, padding included.
        src_tokens: Tokens that the encoder read.
        batches: Micro-batches.
        judged: Pairs of answers, or answers, that an objective over preferences was applied to; 0 for any other.
        good: Good answers.
        bad: Bad answers.
        good_rewards: Summed rewards of the good ones.
        bad_rewards: Summed rewards of the bad ones.
        right: Pairs whose better answer has the higher reward; answers whose reward is on their side of zero.
        divergence: From the reference, as KTO estimates it, summed over micro-batches.
        by_corpus: `nll` and `tokens` of each corpus, in the order of the options; empty where they are not told apart.
    """

    loss: float = 0.0
    nll: float = 0.0
    correct: float = 0.0
    tokens: float = 0.0
    examples: float = 0.0
    positions: float = 0.0
    src_tokens: float = 0.0
    batches: float = 0.0
    judged: float = 0.0
    good: float = 0.0
    bad: float = 0.0
    good_rewards: float = 0.0
    bad_rewards: float = 0.0
    right: float = 0.0
    divergence: float = 0.0
    by_corpus: tuple[tuple[float, float], ...] = field(default=(), kw_only=True)

    @staticmethod
    def row(loss: TokenLoss, batch: Batch) -> Tensor:
        """One batch's sums as a float64 vector on the batch's device, so that adding them needs no synchronisation."""
        positions = batch.tgt_BT.numel() + (0 if batch.src_BS is None else batch.src_BS.numel())
        read = torch.zeros_like(loss.correct) if batch.src_mask_BS is None else batch.src_mask_BS.sum()
        counts = torch.tensor([loss.tokens, batch.num_examples, positions], dtype=torch.float64)
        sums = torch.stack([loss.total, loss.nll, loss.correct.float()]).double()
        more = torch.stack([read, torch.ones_like(read)]).double()
        rewards = sums.new_zeros(7) if loss.rewards is None else loss.rewards
        by_corpus = sums.new_zeros(0) if loss.by_corpus_K2 is None else loss.by_corpus_K2.flatten()
        return torch.cat([sums, counts.to(sums.device), more, rewards, by_corpus])

    @classmethod
    def from_row(cls, row: Tensor) -> Totals:
        """The totals of summed rows."""
        sums, by_corpus = row[:15].tolist(), row[15:].unflatten(0, (-1, 2)).tolist()
        return cls(*sums, by_corpus=tuple((nll, tokens) for nll, tokens in by_corpus))

    @staticmethod
    def empty_row(device: torch.device, corpora: int = 0) -> Tensor:
        """The row to begin a sum with, for batches of so many `corpora` that are told apart."""
        return torch.zeros(15 + 2 * corpora, dtype=torch.float64, device=device)

    def __add__(self, other: Totals) -> Totals:
        pairs = zip_longest(self.by_corpus, other.by_corpus, fillvalue=(0.0, 0.0))
        return Totals(
            *(a + b for a, b in zip(self.values(), other.values(), strict=True)),
            by_corpus=tuple((one[0] + two[0], one[1] + two[1]) for one, two in pairs),
        )

    def values(self) -> tuple[float, ...]:
        """The sums in the order of the fields, without those of single corpora."""
        return (
            *(self.loss, self.nll, self.correct, self.tokens),
            *(self.examples, self.positions, self.src_tokens, self.batches),
            *(self.judged, self.good, self.bad, self.good_rewards, self.bad_rewards, self.right, self.divergence),
        )

    def corpora(self, names: Sequence[str]) -> dict[str, Totals]:
        """Likelihood and tokens of each corpus by name; those without a trained token are left out."""
        sums = zip(names, self.by_corpus, strict=True) if self.by_corpus else ()
        return {name: Totals(nll=nll, tokens=tokens) for name, (nll, tokens) in sums if tokens}

    @property
    def mean_loss(self) -> float:
        """Loss per trained token; per judged pair, or answer, under an objective over preferences."""
        return self.loss / max(self.judged or self.tokens, 1)

    @property
    def rewards(self) -> dict[str, float]:
        """What an objective over preferences has come to, by name; empty under any other."""
        if not self.judged:
            return {}
        chosen, rejected = self.good_rewards / max(self.good, 1), self.bad_rewards / max(self.bad, 1)
        return {
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "reward_margin": chosen - rejected,
            "reward_accuracy": 100.0 * self.right / self.judged,
            "divergence": self.divergence / max(self.batches, 1),
        }

    @property
    def xent(self) -> float:
        """Negative log-likelihood per trained token, in nats."""
        return self.nll / max(self.tokens, 1)

    @property
    def ppl(self) -> float:
        """Perplexity; inf beyond exp(100)."""
        return math.exp(self.xent) if self.xent < 100 else math.inf

    @property
    def accuracy(self) -> float:
        """Share of trained tokens that the model puts first, in percent."""
        return 100.0 * self.correct / max(self.tokens, 1)


@dataclass(frozen=True)
class Judgement:
    """What a validation finds.

    Attributes:
        totals: Over the gold targets.
        scores: Of generated translations, by metric.
        corpora: Totals of each corpus, where there are several.
    """

    totals: Totals
    scores: Mapping[str, float] = field(default_factory=dict)
    corpora: Mapping[str, Totals] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """All of it by name: loss, xent, ppl, accuracy and the metrics; `<corpus>/ppl` ... of single corpora."""
        single = {
            f"{name}/{figure}": value
            for name, totals in self.corpora.items()
            for figure, value in _figures(totals).items()
        }
        return {**_figures(self.totals), **self.scores, **single}


def duration(seconds: float) -> str:
    """Seconds as `45s`, `12m05s` or `3h07m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Stopwatch(Iterator[T]):
    """The same items, and how long they were waited for.

    Args:
        items: What to iterate over.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._seconds = 0.0

    def __next__(self) -> T:
        began = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self._seconds += time.perf_counter() - began

    def lap(self) -> float:
        """Seconds waited since the last lap."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class Reporter:
    """Collects the figures of the updates and reports them.

    Args:
        start_step: Updates done before this process began.
        train_steps: Last update.
        report_every: Updates between two reports.
        progress: "auto" (a bar where stderr is a terminal, else lines), "bar", "line" or "none".
        sinks: Where figures go, by name.
        resumed: `state()` of the run that goes on.
        data: What has happened to the corpora so far, as `data/<corpus>/...`; asked at each report, on all ranks alike.
            None = not reported.
        corpora: Those that the totals tell apart, in order.
        machine: What the machine does; asked at each report with the seconds since the last one. None = not reported.
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
        data: Callable[[], dict[str, float]] | None = None,
        corpora: Sequence[str] = (),
        machine: Callable[[float], dict[str, float]] | None = None,
    ) -> None:
        self._start_step = start_step
        self._train_steps = train_steps
        self._report_every = report_every
        self._progress = _resolve_progress(progress)
        self._data = data
        self._corpora = corpora
        self._machine = machine
        resumed = resumed or {}
        self._sinks: dict[str, Sink] = {}
        self._places: dict[str, str] = {}
        for name, build in (sinks or {}).items():
            self._open(name, build, resumed.get(name) or "")
        self._began = self._window_began = time.perf_counter()
        single = resumed.get("corpora", {})
        by_corpus = tuple((nll, tokens) for nll, tokens in (single.get(name, (0.0, 0.0)) for name in corpora))
        self._window = Totals(*resumed.get("window", ()), by_corpus=by_corpus)
        self._elapsed_before = float(resumed.get("elapsed", 0.0))
        self._waited = 0.0
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
        """Plain data by which another reporter goes on as this one would have."""
        return {
            "window": list(self._window.values()),
            "corpora": {name: [part.nll, part.tokens] for name, part in self._window.corpora(self._corpora).items()},
            "elapsed": self._elapsed_before + time.perf_counter() - self._began,
            **self._places,
        }

    def update(self, step: int, totals: Totals, *, rate: float, grad_norm: float, waited: float = 0.0) -> None:
        """Take in update `step`, and the seconds that it waited for its batches; report when it is time."""
        self._window = self._window + totals
        self._waited += waited
        if self._bar is not None:
            self._bar.update(1)
        if step % self._report_every == 0 or step == self._train_steps:
            self._report(step, rate, grad_norm)

    def validation(self, step: int, judgement: Judgement, *, patience: int | None = None) -> None:
        """Report a validation, and how many worse ones the run will still put up with (None = endless)."""
        totals = judgement.totals
        scores = "".join(f"; {name}: {score:.2f}" for name, score in judgement.scores.items())
        logger.info(
            "Validation at step %d; acc: %.2f; ppl: %.4g; xent: %.4f; sents: %d%s%s",
            *(step, totals.accuracy, totals.ppl, totals.xent, totals.examples, _rewards(totals), scores),
        )
        for name, part in judgement.corpora.items():
            logger.info("  %s: acc: %.2f; ppl: %.4g; xent: %.4f", name, part.accuracy, part.ppl, part.xent)
        self._send("valid", step, judgement.figures | ({} if patience is None else {"patience": patience}))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Validation and saving happen inside: their time does not count in the speed of training."""
        began = time.perf_counter()
        yield
        self._window_began += time.perf_counter() - began

    def _report(self, step: int, rate: float, grad_norm: float) -> None:
        now = time.perf_counter()
        seconds = max(now - self._window_began, 1e-9)
        elapsed = now - self._began
        left = elapsed / (step - self._start_step) * (self._train_steps - step)
        totals = self._window
        figures = {
            **_figures(totals),
            "lr": rate,
            "grad_norm": grad_norm,
            "tokens_per_second": totals.tokens / seconds,
            "src_tokens_per_second": totals.src_tokens / seconds,
            "positions_per_second": totals.positions / seconds,
            "tokens": totals.tokens,
            "examples": totals.examples,
            "elapsed": self._elapsed_before + elapsed,
            "data_wait": self._waited / seconds,
            **({} if self._machine is None else self._machine(seconds)),
            **self._of_corpora(totals),
        }
        share = f"MFU {100 * figures['mfu']:.0f}%; " if "mfu" in figures else ""
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"acc {totals.accuracy:.1f} ppl {totals.ppl:.4g} lr {rate:.3g} {figures['tokens_per_second']:.0f} tok/s"
            )
        elif self._progress == "line":
            logger.info(
                "Step %d/%d; acc: %.2f; ppl: %.4g; xent: %.4f; lr: %.3g; sents: %d%s; "
                "%s; data wait %.0f%%; %s%s; ETA %s",
                *(step, self._train_steps, totals.accuracy, totals.ppl, totals.xent, rate, totals.examples),
                *(_rewards(totals), _pace(totals, seconds), 100 * figures["data_wait"], share),
                *(duration(elapsed), duration(left)),
            )
        self._send("progress", step, figures | ({} if self._data is None else self._data()))
        self._window, self._waited = Totals(), 0.0
        self._window_began = now

    def _of_corpora(self, totals: Totals) -> dict[str, float]:
        """`<corpus>/xent`, `<corpus>/ppl` and `<corpus>/tokens` of those that had trained tokens."""
        return {
            f"{name}/{figure}": value
            for name, part in totals.corpora(self._corpora).items()
            for figure, value in {"xent": part.xent, "ppl": part.ppl, "tokens": part.tokens}.items()
        }

    def _open(self, name: str, build: OpenSink, place: str) -> None:
        """Add a sink. One that cannot be had (a full disk, a server that is away) is done without."""
        try:
            self._sinks[name] = build(place)
        except (DataError, UnsupportedError):
            raise  # the file holds something else, or a package is missing
        except Exception as error:
            logger.warning("Metrics are not written by %s: %s", name, error)
            return
        self._places[name] = self._sinks[name].place

    def _send(self, split: str, step: int, figures: dict[str, float]) -> None:
        """Hand the figures to every sink."""
        for name in list(self._sinks):
            self._guard(name, lambda sink: sink.write(split, step, figures))

    def _guard(self, name: str, use: Callable[[Sink], None]) -> None:
        """Use a sink. One that fails (a full disk) is dropped with a warning; training goes on."""
        try:
            use(self._sinks[name])
        except Exception as error:
            del self._sinks[name]
            logger.warning("Metrics are no longer written by %s: %s", name, error)


def _figures(totals: Totals) -> dict[str, float]:
    likelihood = {"xent": totals.xent, "ppl": totals.ppl, "accuracy": totals.accuracy}
    return {"loss": totals.mean_loss, **likelihood, **totals.rewards}


def _rewards(totals: Totals) -> str:
    """Margin and accuracy of the rewards for a line of the log; nothing where there are none."""
    if not totals.judged:
        return ""
    return "; margin: {reward_margin:.3g}; reward acc: {reward_accuracy:.1f}".format(**totals.rewards)


def _pace(totals: Totals, seconds: float) -> str:
    """Size of the micro-batches and speed, as OpenNMT-py prints them: source/target/examples; source/target tokens."""
    batches = max(totals.batches, 1)
    tokens, examples = totals.tokens / batches, totals.examples / batches
    speed = totals.tokens / seconds
    if totals.src_tokens:
        read = totals.src_tokens
        return f"bsz: {read / batches:.0f}/{tokens:.0f}/{examples:.0f}; {read / seconds:.0f}/{speed:.0f} tok/s"
    # a language model reads what it is not trained on as well
    all_positions = totals.positions / seconds
    return f"bsz: {tokens:.0f}/{examples:.0f}; {speed:.0f} tok/s ({all_positions:.0f} with masked and padding)"


def _resolve_progress(progress: str) -> str:
    if progress != "auto":
        return progress
    return "bar" if sys.stderr.isatty() else "line"
