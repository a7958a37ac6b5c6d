"""Worker pools, which prepare buckets while the model trains.

Task k goes to worker k modulo their number, and results come back in the order of the tasks: nothing depends on the
number or the speed of the workers, and no task is lost or done twice. A worker is a process
(`python -m onmt_llm.data.workers.worker`), or the calling thread.

A process is started afresh rather than forked (tokenisers and torch have threads, which a fork leaves half alive), and
without `multiprocessing`, which would import the caller's main module again. It reads pickled tasks from its standard
input and writes pickled results to its standard output, pipes that nobody else holds; where either ends, it ends.
Either side accepts the classes that belong there only (`pickling.py`).
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.workers.bucket import BucketBuilder, BucketTask, Prepared
from onmt_llm.data.workers.pickling import Restricted
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import logger
from onmt_llm.registry import module_name

T = TypeVar("T")

MODULE = "onmt_llm.data.workers.worker"


@dataclass(frozen=True)
class WorkerReply:
    """What a worker process sends back.

    Attributes:
        result: The bucket, or what went wrong with it.
        messages: What it has to say meanwhile: level and text.
    """

    result: Prepared | BaseException
    messages: list[tuple[int, str]] = field(default_factory=list)


class Worker:
    """A process that prepares buckets, one at a time.

    Args:
        number: Its number, for messages.
        spec: What it needs to know, pickled.
        plugins: Modules of the user's whose options may be in it.
    """

    def __init__(self, number: int, spec: bytes, plugins: Sequence[str] = ()) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._name = f"Data worker {number}"
        with _blocked(signal.SIGINT, signal.SIGTERM):
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, *plugins],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
            )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"onmt_llm-data-{number}")
        self._thread.submit(self._send, spec)  # where this fails, so will the first task

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, task: BucketTask) -> Future[WorkerReply]:
        """Have a bucket prepared; its turn comes after those submitted before."""
        return self._thread.submit(self._work, task)

    def close(self) -> None:
        """End the process, in the midst of a bucket if need be: it has nothing that could be lost."""
        self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()

    def _work(self, task: BucketTask) -> WorkerReply:
        self._send(pickle.dumps(task, protocol=pickle.HIGHEST_PROTOCOL))
        assert self._process.stdout is not None
        try:
            reply = Restricted(self._process.stdout).load()
        except (EOFError, pickle.UnpicklingError, OSError) as error:
            raise self._lost() from error
        assert isinstance(reply, WorkerReply)
        return reply

    def _send(self, pickled: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pickled)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError, OSError) as error:
            raise self._lost() from error

    def _lost(self) -> DataError:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        hint = "the kernel kills what needs too much memory: use fewer num_workers, or a smaller bucket_size"
        return DataError(
            f"{self._name} (process {self.pid}) must live as long as the run, but {how}.",
            hint=hint if code == -signal.SIGKILL else "its last words are above; num_workers: 0 does without it",
        )


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Signals that a process started inside will not get, not even before it can say so itself."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerPool(Protocol):
    """Prepares buckets."""

    def prepare(self, tasks: Iterable[tuple[T, BucketTask]]) -> Iterator[tuple[T, Prepared]]:
        """The results in the order of the tasks, each with what came with its task."""
        ...


@dataclass(frozen=True)
class InlinePool:
    """The calling thread."""

    builder: BucketBuilder

    def prepare(self, tasks: Iterable[tuple[T, BucketTask]]) -> Iterator[tuple[T, Prepared]]:
        for ticket, task in tasks:
            yield ticket, self.builder(task)


@dataclass(frozen=True)
class ProcessPool:
    """Processes that live as long as `prepare` runs."""

    spec: PipelineSpec
    number: int

    def prepare(self, tasks: Iterable[tuple[T, BucketTask]]) -> Iterator[tuple[T, Prepared]]:
        said: set[str] = set()
        spec = _pickled(self.spec)
        plugins = [module_name(plugin) for plugin in self.spec.data.plugins]
        with ExitStack() as stack:
            workers = [stack.enter_context(closing(Worker(number + 1, spec, plugins))) for number in range(self.number)]

            def submit(index: int, item: tuple[T, BucketTask]) -> tuple[T, Future[WorkerReply]]:
                ticket, task = item
                return ticket, workers[index % self.number].submit(task)

            for ticket, future in ahead(tasks, submit, self.number):
                reply = future.result()
                for level, message in reply.messages:
                    if message not in said:
                        said.add(message)
                        logger.log(level, message)
                if isinstance(reply.result, BaseException):
                    raise reply.result
                yield ticket, reply.result


def _pickled(spec: PipelineSpec) -> bytes:
    try:
        return pickle.dumps(spec, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"Tokenisers and options must be picklable for worker processes, but are not: {error}.",
            hint="worker_type: thread, or num_workers: 0",
        ) from error


Item = TypeVar("Item")
Begun = TypeVar("Begun")


def ahead(items: Iterable[Item], begin: Callable[[int, Item], Begun], number: int) -> Iterator[Begun]:
    """What `begin(index, item)` returns for each item, in order, `number` of them begun ahead.

    An exception of `items` comes at its place in the order.
    """
    waiting: deque[Begun] = deque()
    last: Exception | None = None
    stream = enumerate(items)
    while True:
        try:
            while last is None and len(waiting) <= number and (entry := next(stream, None)) is not None:
                waiting.append(begin(*entry))
        except Exception as error:
            last = error
        if not waiting:
            break
        yield waiting.popleft()
    if last is not None:
        raise last
