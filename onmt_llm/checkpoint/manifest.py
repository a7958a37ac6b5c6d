"""`manifest.json`: size and SHA-256 of every file of a checkpoint, by which damage is noticed before anything is used.

safetensors files have no checksum of their own: a flipped bit among the weights loads as another number. Files that are
not listed (a cached fingerprint, somebody's notes) are nobody's business here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
_BLOCK = 1 << 20


def write_manifest(directory: Path, *, leave_out: tuple[str, ...] = ()) -> None:
    """List all files below `directory`; to be called when they are all there.

    Args:
        directory: The checkpoint.
        leave_out: Files at its top that may be rewritten later.
    """
    skipped = {MANIFEST_FILE, *leave_out}
    paths = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    files = {path: _identity(directory / path) for path in paths if path not in skipped}
    content = {"version": MANIFEST_VERSION, "files": files}
    (directory / MANIFEST_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")


def damage(directory: Path) -> list[str]:
    """What of a checkpoint is not as it was written, one phrase each; reads every file. Empty = nothing."""
    file = directory / MANIFEST_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version, files = content["version"], content["files"]
        listed = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST_FILE} cannot be read ({error!r})"]
    if version != MANIFEST_VERSION:
        return [f"{MANIFEST_FILE} has version {version}, which this program does not know"]
    found = (_difference(directory / name, *expected) for name, expected in listed.items())
    return [f"{name} {what}" for name, what in zip(listed, found, strict=True) if what is not None]


def _difference(path: Path, size: int, sha256: str) -> str | None:
    try:
        here = path.stat().st_size
        if here != size:
            return f"has {here:,} bytes instead of {size:,}"
        return None if _sha256(path) == sha256 else "has another SHA-256 than when it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _identity(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
