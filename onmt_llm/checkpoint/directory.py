"""The directory of a checkpoint, adapter or release: where it is, its manifest, and damage to its files.

`manifest.json` has the sizes and checksums of everything, to detect damage on reading. For every file it records the
size and SHA-256, which identify the file, and XXH3, which is fast enough to verify at every read. For a safetensors
file it records XXH3 of the header and of every tensor, so that each tensor is verified when it is read. The manifest
ends with a checksum of itself. Unlisted files (such as notes) are ignored, unless they have a name that would be read.

Damage is an error, or a warning with `ignore_damage`. This module does not need torch, so a wrong path is reported
before torch is imported.
"""

from __future__ import annotations

import contextlib
import glob
import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onmt_llm.atomic import TOO_MANY_FILES, write_text
from onmt_llm.checksums import fast_digest, fast_digest_of_file, safetensors_header, sha256_of_file, tensor_digests
from onmt_llm.config.checkpoint import CONFIG_FILE, CheckpointConfig, read_config
from onmt_llm.errors import CheckpointError
from onmt_llm.log import log_once, logger

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 2
TENSOR_SUFFIX = ".safetensors"
STATE_PREFIX = "train_state/"
"""Files of the training state, which are read only to resume a run."""
OPTIMIZER_FILE = "optimizer.safetensors"
"""File of the training state with the optimiser's tensors."""

CT2_MODEL_FILE = "model.bin"
FIRST_FORMAT_WITH_MANIFEST = 2
"""First `format_version` in which every checkpoint and release has a manifest."""

_IS_READ = re.compile(
    r"config\.(yaml|json)|.*\.safetensors(\.index\.json)?|((src|src_feat\d+)_)?vocab\.txt|tokenizer\..+|"
    r".*\.jinja|shards/.+\.safetensors|model\.bin|.*vocabulary\w*\.(json|txt)|train_state/.+"
)
_STEP = re.compile(r".*_step_(\d+)")
_MOST_SHOWN = 5
_ignoring = False


def resolve_path(path: str | Path) -> Path:
    """The checkpoint directory that `path` names, with or without a trailing `.pt`.

    OpenNMT-py's documentation writes checkpoints with and without `.pt`, so both spellings are accepted.

    Raises:
        CheckpointError: There is no such directory, or it is not a checkpoint.
    """
    path = Path(path)
    for candidate in spellings(path):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    for candidate in spellings(path):
        if candidate.is_file():
            is_inside = (candidate.parent / CONFIG_FILE).is_file()
            convert = f"convert it first: onmt_llm_convert -from auto -model_dir {candidate} -output NEW_DIRECTORY"
            raise CheckpointError(
                f"A checkpoint must be a directory that holds {CONFIG_FILE}, but {candidate} is a file.",
                hint=f"the directory is {candidate.parent}" if is_inside else convert,
            )
    if (path / "adapter_config.json").is_file():
        raise CheckpointError(
            f"A checkpoint must hold {CONFIG_FILE}, but {path} is a peft adapter.",
            hint=f"onmt_llm_lora -action import -base_model BASE -lora_weights {path} -output NEW_DIRECTORY",
        )
    if path.is_dir():
        inside = _newest(path.glob(f"*/{CONFIG_FILE}"))
        convert = f"if it holds another toolkit's model: onmt_llm_convert -model_dir {path} -output NEW_DIRECTORY"
        raise CheckpointError(
            f"A checkpoint must hold {CONFIG_FILE}, but {path} does not.",
            hint=f"there is one inside: {inside}" if inside else convert,
        )
    if re.match("[a-z0-9]+:/", str(path)):
        address = str(path).replace(":/", "://", 1)  # undo what Path did to it
        raise CheckpointError(
            f"A checkpoint must be a local directory, but {address} is a URL.", hint="download it first"
        )
    found = _newest(path.parent.glob(f"{glob.escape(path.name)}_step_*/{CONFIG_FILE}"))
    raise CheckpointError(f"There is no checkpoint at {path}.", hint=f"did you mean {found}?" if found else None)


def spellings(path: Path) -> tuple[Path, Path]:
    """`path`, and the same with or without a trailing `.pt`."""
    return path, path.with_suffix("") if path.suffix == ".pt" else Path(f"{path}.pt")


def no_weights(directory: Path, files: str) -> CheckpointError:
    """The error about a directory with the configuration of a checkpoint, but without one of these files."""
    if (directory / CT2_MODEL_FILE).is_file():
        return CheckpointError(
            f"{directory} must be a checkpoint, but is a CTranslate2 release, which can only be served.",
            hint="name the checkpoint that it was made from",
        )
    return CheckpointError(f"{directory} holds neither {files}.")


def _newest(configs: Iterable[Path]) -> Path | None:
    """The checkpoint of the highest step, of those with these configurations; None if there is none."""
    steps = {each.parent: _STEP.fullmatch(each.parent.name) for each in configs}
    return max(steps, key=lambda each: (int(found[1]) if (found := steps[each]) else -1, each.name), default=None)


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
                found += [f"{name} {what}" for what in file_problems(self.directory / name, entry, thorough=thorough)]
        unlisted = (name for name in _names(self.directory) if name not in self.files and _IS_READ.fullmatch(name))
        return found + [f"{name} is not listed in {MANIFEST_FILE}" for name in unlisted if which(name)]

    def files_below(self, folder: str) -> dict[str, FileEntry]:
        """The entries of the files in a folder, by their paths relative to it."""
        prefix = f"{folder}/"
        return {name.removeprefix(prefix): entry for name, entry in self.files.items() if name.startswith(prefix)}


def manifest_text(
    directory: Path, *, fingerprint: str | None = None, known: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The content of `manifest.json` for all files below `directory`; reads all of them that are not known.

    Args:
        directory: The checkpoint, adapter or release.
        fingerprint: `Checkpoint.fingerprint`, if known.
        known: The `file_record` of files that other processes have written, by relative path.
    """
    known = known or {}
    content: dict[str, Any] = {
        "version": MANIFEST_VERSION,
        "fingerprint": fingerprint,
        "files": {name: known.get(name) or file_record(directory / name) for name in _names(directory)},
    }
    content["checksum"] = _checksum(content)
    return json.dumps(content, indent=1)


def write_manifest(directory: Path, *, fingerprint: str | None = None) -> None:
    """Write the manifest of `directory`; see `manifest_text`."""
    write_text(directory / MANIFEST_FILE, manifest_text(directory, fingerprint=fingerprint))


def manifest_without_state(directory: Path) -> str:
    """The content of `manifest.json` of a copy of `directory` without its training state."""
    content = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    kept = {name: entry for name, entry in content["files"].items() if not name.startswith(STATE_PREFIX)}
    content = {**content, "files": kept}
    return json.dumps({**content, "checksum": _checksum(content)}, indent=1)


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
        if isinstance(error, OSError) and error.errno in TOO_MANY_FILES:
            raise
        refuse_damage(directory, [f"{MANIFEST_FILE} cannot be read ({_short(error)})"])
        return None


def find_damage(directory: Path, *, thorough: bool = False) -> list[str]:
    """Verify every file of a checkpoint: differences from its manifest, one phrase each; empty = intact."""
    try:
        with damage_ignored(False):
            manifest = read_manifest(directory)
    except CheckpointError as error:
        return [error.message]
    return [f"{MANIFEST_FILE} is missing"] if manifest is None else manifest.problems(thorough=thorough)


@contextlib.contextmanager
def damage_ignored(ignored: bool = True) -> Iterator[None]:
    """In this context, damage is a warning instead of an error, so that a damaged model can be rescued."""
    global _ignoring
    before, _ignoring = _ignoring, ignored or _ignoring
    try:
        yield
    finally:
        _ignoring = before


def refuse(sentence: str, *, hint: str, always: bool = False) -> None:
    """Raise an error about something that makes a model unusable, or log a warning if damage is ignored.

    Args:
        sentence: What must hold, what it is, where.
        hint: What the user can do.
        always: Raise even if damage is ignored.

    Raises:
        CheckpointError: Damage is not ignored.
    """
    if _ignoring and not always:
        logger.warning("%s It is used nevertheless (ignore_damage).", sentence)
        return
    raise CheckpointError(sentence, hint=hint if always else f"{hint}; -ignore_damage uses it nevertheless")


def refuse_damage(directory: Path, problems: Sequence[str], *, always: bool = False) -> None:
    """Refuse files that differ from what was written.

    Args:
        directory: The checkpoint, adapter or release.
        problems: One phrase each; empty = no damage.
        always: Raise even if damage is ignored.

    Raises:
        CheckpointError: There are problems, and damage is not ignored.
    """
    if problems:
        shown = "; ".join(problems[:_MOST_SHOWN]) + ("; ..." if len(problems) > _MOST_SHOWN else "")
        refuse(
            f"{directory} must be as it was written, but is not: {shown}.",
            hint=f"copy it again; if you changed it yourself: onmt_llm_checkpoint seal -model {directory}",
            always=always,
        )


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


def file_record(path: Path) -> dict[str, Any]:
    """Size and checksums of a file, as a manifest has them."""
    record: dict[str, Any] = {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
    if path.suffix == TENSOR_SUFFIX:
        with contextlib.suppress(
            ValueError, KeyError, TypeError, AttributeError
        ):  # otherwise another program's file with that ending
            header = safetensors_header(path)
            tensors = tensor_digests(path, header)
            return {**record, "header": fast_digest(header), "tensors": tensors}
    return {**record, "xxh3": fast_digest_of_file(path)}


def file_problems(path: Path, entry: FileEntry, *, thorough: bool = False) -> list[str]:
    """Differences of a file from its entry, by the fastest recorded digest; `thorough`: by SHA-256 too."""
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
        if error.errno in TOO_MANY_FILES:
            raise
        return [f"cannot be read ({error.strerror or error})"]


def _changed_bytes(path: Path, entry: FileEntry) -> list[str]:
    same = sha256_of_file(path) == entry.sha256 if entry.xxh3 is None else fast_digest_of_file(path) == entry.xxh3
    return [] if same else ["has another checksum than when it was written"]


def _changed_tensors(path: Path, entry: FileEntry) -> list[str]:
    # The header says where the tensors are, so they are read only if it is intact.
    header = safetensors_header(path)
    if fast_digest(header) != entry.header:
        return ["has another header than when it was written"]
    expected, here = entry.tensors or {}, tensor_digests(path, header)
    wrong = [name for name in sorted(here) if here[name] != expected.get(name)]
    return [f"has other values in {', '.join(wrong[:_MOST_SHOWN])} than when it was written"] if wrong else []


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]
