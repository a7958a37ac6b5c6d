"""Runs each of many cases in a process of its own, under limits of the operating system, and says what it took."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMIT_MIB, LIMIT_S = 600, 20


def measured(case: Callable[[], Any]) -> dict[str, Any]:
    """What `case` returned (`result`), processor seconds (`s`) and growth of the memory in use (`mib`).

    A case that does not end within the limits has a `problem` instead.
    """
    inlet, outlet = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(outlet, json.dumps(_run(case)).encode())
        finally:
            os._exit(0)
    os.close(outlet)
    with open(inlet, encoding="utf-8") as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else {"problem": f"ended with status {status}"}  # type: ignore[no-any-return]


def _run(case: Callable[[], Any]) -> dict[str, Any]:
    import resource
    import signal

    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + (LIMIT_MIB << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    signal.alarm(3 * LIMIT_S)  # for what waits
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    result = case()
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"result": result, "s": seconds, "mib": grown}
