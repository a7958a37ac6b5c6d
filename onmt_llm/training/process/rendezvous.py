"""How the processes that torchrun starts find each other: also after a restart, when its store still has old entries.

torchrun keeps one store for all attempts at a run. gloo reads the addresses of the other processes from it, and would
find those of processes that have been killed. So the processes of an attempt agree on a name for it, which is the
prefix of everything that they write.
"""

from __future__ import annotations

import os
import secrets
import time
from datetime import timedelta
from typing import Any

START_TIMEOUT = timedelta(minutes=10)
"""Time for all processes of an attempt to be started."""
_POLL_S = 0.05


def outlives_attempts() -> bool:
    """Whether the store belongs to torchrun, and not to the first process."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def open_store(attempt: str = "", *, timeout: timedelta = START_TIMEOUT) -> Any:
    """A connection to the store of the run; each thread needs its own.

    Args:
        attempt: Name of the attempt.
        timeout: Longest time that an operation may wait.

    Raises:
        RuntimeError: There is no store.
    """
    from torch.distributed import PrefixStore, TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore(f"onmt_llm/{attempt}", TCPStore(address, port, is_master=False, timeout=timeout))


def agree(store: Any, rank: int, size: int, *, timeout: timedelta = START_TIMEOUT) -> str:
    """The name of this attempt, which rank 0 makes up; equal on all ranks, and of no earlier attempt.

    Each rank introduces itself by a new name of its own, and rank 0 answers that name: an answer to another process of
    the same rank, in an earlier attempt, is never read.

    Args:
        store: The store of all attempts.
        rank: Number of this process.
        size: Number of processes.
        timeout: Time for all of them to be there.

    Raises:
        RuntimeError: A process is not there in time.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"name/{rank}", own)
        store.wait([f"answer/{own}"], timeout)
        attempt: str = store.get(f"answer/{own}").decode()
        store.set(f"{attempt}/{rank}", "")
        return attempt
    missing, deadline = set(range(1, size)), time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"{own}/{other}"]):
                missing.discard(other)
            elif store.check([f"name/{other}"]):
                store.set(f"answer/{store.get(f'name/{other}').decode()}", own)
        if time.monotonic() > deadline:
            raise RuntimeError(f"the processes {', '.join(map(str, sorted(missing)))} are not there after {timeout}")
        time.sleep(_POLL_S)
    return own
