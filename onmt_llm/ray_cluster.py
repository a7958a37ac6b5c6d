"""The connection to Ray, an optional package."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

from onmt_llm.errors import ConfigError
from onmt_llm.optional import require


def connect(address: str | None, feature: str) -> ModuleType:
    """Connect to Ray, unless this process is connected; returns its module.

    Args:
        address: Of the cluster; None = the environment variable `RAY_ADDRESS`, else a new cluster on this machine.
        feature: What needs Ray, for messages.

    Raises:
        ConfigError: There is no cluster at the address.
        UnsupportedError: Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = require("ray", feature)
    if ray.is_initialized():
        return ray
    try:
        ray.init(address=address, include_dashboard=False if address is None else None)
    except (ConnectionError, ValueError) as error:
        given = address or os.environ.get("RAY_ADDRESS")
        raise ConfigError(
            f"'ray_address' must be a running Ray cluster, but {given} is not ({last_line(error)}).",
            hint="ray start --head starts one; without an address, one is started on this machine",
        ) from error
    return ray


def enter(folder: Path) -> None:
    """Change to the working directory of the process that started this one.

    Raises:
        ConfigError: This machine has no such folder.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} must exist on all machines of the cluster, but does not on {os.uname().nodename} "
            f"({error.strerror}).",
            hint="start the command in a folder of a shared file system",
        ) from error


def last_line(error: BaseException) -> str:
    """The last line of a message, without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
