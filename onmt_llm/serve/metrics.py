"""Figures about requests and answers, in the format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from onmt_llm.generate.scheduling.ticket import Ticket
from onmt_llm.serve.models import ModelPool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SECONDS_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The figures of one server.

    Args:
        models: Their queues are read when the figures are.
    """

    def __init__(self, models: ModelPool) -> None:
        self._registry = registry = CollectorRegistry()
        model = ["model"]
        self._requests = Counter(
            "onmt_llm_http_requests", "Requests.", ["method", "route", "status"], registry=registry
        )
        self._answers = Counter("onmt_llm_answers", "Answers by their end.", ["model", "end"], registry=registry)
        self._prompt_tokens = Counter("onmt_llm_prompt_tokens", "Tokens of prompts.", model, registry=registry)
        self._answer_tokens = Counter("onmt_llm_answer_tokens", "Tokens of answers.", model, registry=registry)

        def seconds(name: str, about: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"onmt_llm_{name}_seconds", about, model, registry=registry, buckets=buckets)

        self._queue_time = seconds("queue_time", "From the request to the start of its answer.")
        self._first_token = seconds("first_token", "From the request to its first token.")
        self._per_token = seconds("per_token", "From one token to the next, mean of an answer.", _SECONDS_PER_TOKEN)
        self._total = seconds("answer", "From the request to the end of its answer.")
        registry.register(_Queues(models))

    def count_request(self, method: str, route: str, status: int) -> None:
        """Count an HTTP request."""
        self._requests.labels(method, route, str(status)).inc()

    def count_answer(self, model: str, ticket: Ticket) -> None:
        """Count an answer that is complete or was given up."""
        self._answers.labels(model, end_of(ticket)).inc()
        self._prompt_tokens.labels(model).inc(len(ticket.request.prompt))
        self._answer_tokens.labels(model).inc(ticket.token_count)
        finished = ticket.finished or time.monotonic()
        if ticket.started is not None:
            self._queue_time.labels(model).observe(ticket.started - ticket.submitted)
        if ticket.first_token is not None:
            self._first_token.labels(model).observe(ticket.first_token - ticket.submitted)
            if ticket.token_count > 1:
                self._per_token.labels(model).observe((finished - ticket.first_token) / (ticket.token_count - 1))
        self._total.labels(model).observe(finished - ticket.submitted)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)


def end_of(ticket: Ticket) -> str:
    """How an answer ended, in a word; one whose time was over is complete, as far as its client knows."""
    return "failed" if ticket.error else "cancelled" if ticket.is_cancelled else "complete"


class _Queues:
    """Reads the queues of the loaded models."""

    def __init__(self, models: ModelPool) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily("onmt_llm_waiting", "Answers that wait.", labels=["model"])
        running = GaugeMetricFamily("onmt_llm_running", "Answers that are being generated.", labels=["model"])
        loaded = GaugeMetricFamily("onmt_llm_loaded", "Whether the model is in memory.", labels=["model"])
        in_memory = {model.name: model for model in self._models.loaded}
        for name in self._models.names:
            loaded.add_metric([name], float(name in in_memory))
        for name, model in in_memory.items():
            statistics = model.scheduler.statistics
            waiting.add_metric([name], statistics.waiting)
            running.add_metric([name], statistics.running)
        yield from (waiting, running, loaded)

    def describe(self) -> Iterator[Metric]:
        """Names only, so that nothing is read at registration."""
        return iter(())
