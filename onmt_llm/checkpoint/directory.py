"""`manifest.json`: sizes and checksums of everything in a checkpoint, adapter or release, to detect damage on reading.

For every file it records the size and SHA-256, which identify the file, and XXH3, which is fast enough to verify at
every read. For a safetensors file it records XXH3 of the header and of every tensor, so that each tensor is verified
when it is read. The manifest ends with a checksum of itself. Unlisted files (such as notes) are ignored, unless they
have a name that would be read.
"""

from __future__ import annotations

import contextlib
import json
import re
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onmt_llm.atomic import write_text
from onmt_llm.checkpoint.damage import damage_ignored, refuse_damage
from onmt_llm.checksums import fast_digest, fast_digest_of_file, fast_digest_of_part, sha256_of_file
from onmt_llm.config.checkpoint import CheckpointConfig, read_config
from onmt_llm.errors import CheckpointError
from onmt_llm.log import log_once

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 2
TENSOR_SUFFIX = ".safetensors"
STATE_PREFIX = "train_state/"
"""Files of the training state, which are read only to resume a run."""

CT2_MODEL_FILE = "model.bin"
FIRST_FORMAT_WITH_MANIFEST = 2
"""First `format_version` in which every checkpoint and release has a manifest."""

_IS_READ = re.compile(
    r"config\.(yaml|json)|.*\.safetensors(\.index\.json)?|((src|src_feat\d+)_)?vocab\.txt|tokenizer\..+|"
    r".*\.jinja|model\.bin|.*vocabulary\w*\.(json|txt)|train_state/.+"
)
_MOST_SHOWN = 5


@dataclass(frozen=True)
class FileEntry:
    """The manifest's entry for one file.

    Attributes:
        size: Bytes.
        sha256: SHA-256 of its content.
        xxh3: XXH3 of its content; None for a safetensors file, and in version 1.
        header: XXH3 of length and header of a safetensors file; otherwise None.
        tensors: XXH3 of its tensors (`tensor_prefix` and bytes) by name; otherwise None.
    """

    size: int
    sha256: str
    xxh3: str | None = None
    header: str | None = None
    tensors: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Manifest:
    """Content of `manifest.json`.

    Attributes:
        directory: The directory that holds it.
        files: Entries by relative path, with slashes.
        fingerprint: `Checkpoint.fingerprint`; None if it was not recorded.
    """

    directory: Path
    files: Mapping[str, FileEntry]
    fingerprint: str | None = None

    def problems(self, which: Callable[[str], bool] = lambda name: True, *, thorough: bool = False) -> list[str]:
        """Differences between the files and the manifest, one phrase each.

        Args:
            which: Selects the files to verify by name.
            thorough: Verify SHA-256 too.
        """
        found = []
        for name, entry in sorted(self.files.items()):
            if which(name):
                found += [f"{name} {what}" for what in _differences(self.directory / name, entry, thorough)]
        unlisted = (name for name in _names(self.directory) if name not in self.files and _IS_READ.fullmatch(name))
        return found + [f"{name} is not listed in {MANIFEST_FILE}" for name in unlisted if which(name)]

    def files_below(self, folder: str) -> dict[str, FileEntry]:
        """The entries of the files in a folder, by their paths relative to it."""
        prefix = f"{folder}/"
        return {name.removeprefix(prefix): entry for name, entry in self.files.items() if name.startswith(prefix)}


def manifest_text(directory: Path, *, fingerprint: str | None = None) -> str:
    """The content of `manifest.json` for all files below `directory`; reads all of them.

    Args:
        directory: The checkpoint, adapter or release.
        fingerprint: `Checkpoint.fingerprint`, if known.
    """
    content: dict[str, Any] = {
        "version": MANIFEST_VERSION,
        "fingerprint": fingerprint,
        "files": {name: _record(directory / name) for name in _names(directory)},
    }
    content["checksum"] = _checksum(content)
    return json.dumps(content, indent=1)


def write_manifest(directory: Path, *, fingerprint: str | None = None) -> None:
    """Write the manifest of `directory`; see `manifest_text`."""
    write_text(directory / MANIFEST_FILE, manifest_text(directory, fingerprint=fingerprint))


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of `directory`; None if there is none, or if it is damaged and damage is ignored.

    Raises:
        CheckpointError: It is damaged, or has a newer version.
    """
    file = directory / MANIFEST_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _parse(directory, content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        refuse_damage(directory, [f"{MANIFEST_FILE} cannot be read ({_short(error)})"])
        return None


def open_directory(directory: Path) -> tuple[CheckpointConfig, Manifest | None]:
    """Open a checkpoint, adapter or release: its configuration and its manifest. Verifies its files.

    Tensors are not verified here, but when they are read; nor are the training state and a CTranslate2 model.bin.

    Raises:
        CheckpointError: A file is damaged or missing.
    """
    manifest = read_manifest(directory)
    if manifest is not None:
        refuse_damage(directory, manifest.problems(_is_read_on_opening))
    config = read_config(directory)
    if manifest is None and not (directory / MANIFEST_FILE).exists():
        if config.format_version >= FIRST_FORMAT_WITH_MANIFEST:
            refuse_damage(directory, [f"{MANIFEST_FILE} is missing"])
        else:
            log_once(f"{directory} has no {MANIFEST_FILE}, so damage to it cannot be detected.")
    return config, manifest


def _is_read_on_opening(name: str) -> bool:
    return not name.endswith(TENSOR_SUFFIX) and not name.startswith(STATE_PREFIX) and name != CT2_MODEL_FILE


def find_damage(directory: Path, *, thorough: bool = False) -> list[str]:
    """Verify every file of a checkpoint: differences from its manifest, one phrase each; empty = intact."""
    try:
        with damage_ignored(False):
            manifest = read_manifest(directory)
    except CheckpointError as error:
        return [error.message]
    return [f"{MANIFEST_FILE} is missing"] if manifest is None else manifest.problems(thorough=thorough)


def tensor_prefix(name: str, dtype: str, shape: Sequence[int]) -> bytes:
    """What a tensor's digest covers before its bytes.

    Args:
        name: Name of the tensor.
        dtype: Its type, as safetensors names it.
        shape: Its shape.
    """
    return f"{name}\0{dtype}\0{list(shape)}\0".encode()


def header_digest(path: Path) -> str:
    """XXH3 of length and header of a safetensors file."""
    return fast_digest(_header(path))


def file_problems(path: Path, entry: FileEntry) -> list[str]:
    """Differences of a whole file from its entry, by the fastest recorded digest."""
    return _differences(path, entry, False)


def _parse(directory: Path, content: Any) -> Manifest:
    version = content["version"]
    if type(version) is int and version > MANIFEST_VERSION:
        raise CheckpointError(
            f"{directory / MANIFEST_FILE} must have a version of at most {MANIFEST_VERSION}, but has {version}.",
            hint="update onmt_llm",
        )
    if type(version) is not int or version < 1:
        raise ValueError(f"unknown version {version!r}")
    if (version > 1 or "checksum" in content) and content["checksum"] != _checksum(content):
        raise ValueError("its checksum is wrong")
    files = {}
    for name, entry in content["files"].items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"'{name}' is outside its directory")
        tensors = entry.get("tensors")
        files[name] = FileEntry(
            size=int(entry["size"]),
            sha256=str(entry["sha256"]),
            xxh3=entry.get("xxh3"),
            header=entry.get("header"),
            tensors=None if tensors is None else dict(tensors),
        )
    return Manifest(directory, files, content.get("fingerprint"))


def _checksum(content: Mapping[str, Any]) -> str:
    without = {key: value for key, value in content.items() if key != "checksum"}
    return fast_digest(json.dumps(without, sort_keys=True, separators=(",", ":")).encode())


def _names(directory: Path) -> list[str]:
    paths = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return [path for path in paths if path != MANIFEST_FILE and not PurePosixPath(path).name.startswith(".")]


def _record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
    if path.suffix == TENSOR_SUFFIX:
        with contextlib.suppress(
            ValueError, KeyError, TypeError, AttributeError
        ):  # otherwise another program's file with that ending
            return {**record, "header": header_digest(path), "tensors": _tensor_digests(path)}
    return {**record, "xxh3": fast_digest_of_file(path)}


def _differences(path: Path, entry: FileEntry, thorough: bool) -> list[str]:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return ["is not a regular file"]
        if found.st_size != entry.size:
            return [f"has {found.st_size:,} bytes instead of {entry.size:,}"]
        changed = _changed_bytes(path, entry) if entry.tensors is None else _changed_tensors(path, entry)
        if not changed and thorough and sha256_of_file(path) != entry.sha256:
            return ["has another SHA-256 than when it was written"]
        return changed
    except FileNotFoundError:
        return ["is missing"]
    except OSError as error:
        return [f"cannot be read ({error.strerror or error})"]


def _changed_bytes(path: Path, entry: FileEntry) -> list[str]:
    same = sha256_of_file(path) == entry.sha256 if entry.xxh3 is None else fast_digest_of_file(path) == entry.xxh3
    return [] if same else ["has another checksum than when it was written"]


def _changed_tensors(path: Path, entry: FileEntry) -> list[str]:
    # The header says where the tensors are, so they are read only if it is intact.
    if header_digest(path) != entry.header:
        return ["has another header than when it was written"]
    expected, here = entry.tensors or {}, _tensor_digests(path)
    wrong = [name for name in sorted(here) if here[name] != expected.get(name)]
    return [f"has other values in {', '.join(wrong[:_MOST_SHOWN])} than when it was written"] if wrong else []


def _tensor_digests(path: Path) -> dict[str, str]:
    header = _header(path)
    content = json.loads(header[8:])
    digests = {}
    for name, info in content.items():
        if name != "__metadata__":
            start, end = info["data_offsets"]
            prefix = tensor_prefix(name, info["dtype"], info["shape"])
            digests[name] = fast_digest_of_part(path, len(header) + start, end - start, prefix=prefix)
    return digests


def _header(path: Path) -> bytes:
    """Length and header of a safetensors file; as much as can be read if the length is wrong."""
    with open(path, "rb") as file:
        length = file.read(8)
        size = struct.unpack("<Q", length)[0] if len(length) == 8 else 0
        return length + file.read(min(size, path.stat().st_size))


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]
