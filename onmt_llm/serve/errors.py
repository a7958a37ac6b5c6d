"""Refusals: why a request gets no answer, before an API puts that into its own form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onmt_llm.errors import CheckpointError, OnmtLlmError
from onmt_llm.generate.scheduling.scheduler import Overloaded
from onmt_llm.log import logger
from onmt_llm.serve.models import UnknownModel


class Refusal(Exception):
    """A request is not answered.

    Args:
        status: HTTP status.
        message: One sentence: what must hold, and what it is.
        param: The parameter of the request that is at fault.
        code: A word for programs: `model_not_found`.
        retry_after: Seconds after which the request may be sent again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        message = message.encode("utf-8", "replace").decode()  # it may quote half of a surrogate pair, as JSON may have
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}


def refusal_of(error: Exception) -> Refusal:
    """The refusal that follows from an error; one that is not meant for clients is logged and hidden."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UnknownModel):
        return Refusal(404, _one_line(error), param="model", code="model_not_found")
    if isinstance(error, Overloaded):
        return Refusal(429, error.message, code="queue_full", retry_after=error.retry_after)
    if isinstance(error, CheckpointError):
        logger.error("A model cannot be used: %s", error)
        return Refusal(503, "The model must be usable, but is not; the server's log says why.", code="model_unusable")
    if isinstance(error, OnmtLlmError):
        return Refusal(400, _one_line(error))
    logger.error("A request failed.", exc_info=error)
    return Refusal(500, "The server must answer, but failed; its log says why.", code="internal_error")


def _one_line(error: OnmtLlmError) -> str:
    return error.message if error.hint is None else f"{error.message} ({error.hint})"


def stopping() -> Refusal:
    """The refusal of a server that stops."""
    return Refusal(503, "The server must be running, but is being stopped.", code="stopping", retry_after=5)


def invalid_body(errors: Sequence[Any]) -> Refusal:
    """The refusal of a body that does not fit its schema.

    Args:
        errors: Those of pydantic; the first is reported.
    """
    first = errors[0]
    path = [str(part) for part in first["loc"] if part != "body"]
    name = ".".join(path)
    if first["type"] == "json_invalid":
        return Refusal(400, f"The body must be JSON, but is not: {first.get('ctx', {}).get('error', 'invalid')}.")
    if first["type"] == "unsupported_parameter":
        name = first["ctx"]["name"]
        message = f"'{name}' must be left out: this server does not support it."
        return Refusal(400, message, param=name, code="unsupported_parameter")
    if not path:
        return Refusal(400, "The body must be a JSON object with the header `Content-Type: application/json`.")
    if first["type"] == "extra_forbidden":
        return Refusal(400, f"'{name}' is not a parameter of this request.", param=name, code="unknown_parameter")
    if first["type"] == "missing":
        return Refusal(400, f"'{name}' must be given, but is not.", param=name, code="missing_required_parameter")
    if first["type"] == "value_error":
        return Refusal(400, f"'{name}' {first['ctx']['error']}.", param=name, code="unsupported_value")
    message = str(first["msg"]).removeprefix("Input ").rstrip(".")
    return Refusal(400, f"'{name}' is wrong: it {message}.", param=name, code="invalid_value")
