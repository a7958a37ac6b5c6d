"""Worker pools: run tasks in worker processes or in the calling thread, with results in the order of the tasks.

Task k goes to worker k modulo their number, and results come back in the order of the tasks: nothing depends on the
number or the speed of the workers, and no task is lost or done twice. A worker is a process
(`python -m onmt_llm.data.workers.worker`), or the calling thread. What it does with a task is its `Job`.

A process is started afresh rather than forked (tokenisers and torch have threads, which a fork leaves half alive), and
without `multiprocessing`, which would import the caller's main module again. It reads pickled tasks from its standard
input and writes pickled results to its standard output, private pipes; when either closes, the process ends. Both sides
accept only the expected classes (`pickling.py`).
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
from typing import Any, Generic, Protocol, TypeVar

from onmt_llm.data.workers.pickling import Restricted
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import logger
from onmt_llm.registry import module_name

T = TypeVar("T")
TaskT = TypeVar("TaskT")
TaskT_contra = TypeVar("TaskT_contra", contravariant=True)
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

MODULE = "onmt_llm.data.workers.worker"


class Job(Protocol[TaskT_contra, ResultT_co]):
    """What workers do with their tasks; it is pickled to every process, and opened there once."""

    @property
    def plugins(self) -> Sequence[str]:
        """Modules and files of the user, whose classes may be in the job and its tasks."""

    @property
    def without_processes(self) -> str:
        """The option that runs the job without worker processes, for hints."""

    @property
    def less_memory(self) -> str:
        """What takes less memory, for hints."""

    def open(self) -> Callable[[TaskT_contra], ResultT_co]:
        """The function from a task to its result."""


@dataclass(frozen=True)
class WorkerReply:
    """What a worker process sends back.

    Attributes:
        result: The result of the task, or the error that it raised.
        messages: What was logged meanwhile: level and text.
    """

    result: Any
    messages: list[tuple[int, str]] = field(default_factory=list)


class WorkerProcess:
    """A process that works on one task at a time.

    Args:
        number: Its number, for messages.
        job: What it does.
        pickled: The same, pickled.
    """

    def __init__(self, number: int, job: Job[Any, Any], pickled: bytes) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self._name = f"Data worker {number}"
        self._job = job
        with _blocked(signal.SIGINT, signal.SIGTERM):
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, *map(module_name, job.plugins)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
            )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"onmt_llm-data-{number}")
        self._thread.submit(self._send, pickled)  # if this fails, so does the first task

    @property
    def pid(self) -> int:
        return self._process.pid

    def submit(self, task: object) -> Future[WorkerReply]:
        """Start a task after those that were submitted before."""
        return self._thread.submit(self._work, task)

    def close(self) -> None:
        """Kill the process, even during a task: it holds nothing that could be lost."""
        self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()

    def _work(self, task: object) -> WorkerReply:
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
        if code == -signal.SIGKILL:
            hint = f"the system is probably out of memory: use {self._job.less_memory}"
        else:
            hint = f"its last messages are above; {self._job.without_processes} does without it"
        return DataError(f"{self._name} (process {self.pid}) must live as long as the run, but {how}.", hint=hint)


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block signals for a process started in this context, from its very start."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerPool(Protocol[TaskT_contra, ResultT_co]):
    """Runs tasks."""

    def run(self, tasks: Iterable[tuple[T, TaskT_contra]]) -> Iterator[tuple[T, ResultT_co]]:
        """The results in the order of the tasks, each with what came with its task."""
        ...


@dataclass(frozen=True)
class InlinePool(Generic[TaskT, ResultT]):
    """The calling thread."""

    work: Callable[[TaskT], ResultT]

    def run(self, tasks: Iterable[tuple[T, TaskT]]) -> Iterator[tuple[T, ResultT]]:
        for ticket, task in tasks:
            yield ticket, self.work(task)


@dataclass(frozen=True)
class ProcessPool(Generic[TaskT, ResultT]):
    """Processes that live as long as `run` does."""

    job: Job[TaskT, ResultT]
    number: int

    def run(self, tasks: Iterable[tuple[T, TaskT]]) -> Iterator[tuple[T, ResultT]]:
        said: set[str] = set()
        pickled = _pickled(self.job)
        with ExitStack() as stack:
            workers = [
                stack.enter_context(closing(WorkerProcess(number + 1, self.job, pickled)))
                for number in range(self.number)
            ]

            def submit(index: int, item: tuple[T, TaskT]) -> tuple[T, Future[WorkerReply]]:
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


def _pickled(job: Job[Any, Any]) -> bytes:
    try:
        return pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"Tokenisers and options must be picklable for worker processes, but are not: {error}.",
            hint=f"{job.without_processes} does without them",
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
