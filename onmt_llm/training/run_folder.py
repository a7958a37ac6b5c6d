"""The folder of a run: its checkpoints by name, the newest that is intact, which ones stay, and who writes there."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from onmt_llm.atomic import recover, remove_directory
from onmt_llm.checkpoint.damage import refuse
from onmt_llm.checkpoint.files.manifest import MANIFEST_FILE, damage
from onmt_llm.config.checkpoint import CONFIG_FILE
from onmt_llm.errors import CheckpointError
from onmt_llm.log import logger
from onmt_llm.output_checks import is_replaceable
from onmt_llm.training.state import STATE_DIRECTORY, STATE_FILE

_DAMAGED = "damaged"
# State files of version 1 were written before there was a manifest.
_FIRST_VERSION_WITH_MANIFEST = 2


def checkpoint_path(save_model: str, step: int) -> Path:
    """Where the checkpoint of `step` goes."""
    return Path(f"{save_model}_step_{step}")


def average_path(checkpoint: Path) -> Path:
    """Where the running average of the weights goes that belongs to a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}_ema")


def save_request(save_model: str) -> Path:
    """The file that, when it is touched, asks for a checkpoint."""
    return Path(f"{save_model}.save")


def checkpoints(save_model: str) -> dict[int, Path]:
    """Complete checkpoints with the prefix `save_model`, by step, in order."""
    return {step: path for step, path in _directories(save_model).items() if (path / CONFIG_FILE).is_file()}


def _directories(save_model: str) -> dict[int, Path]:
    return {step: path for step, path in _places(save_model).items() if path.is_dir()}


def _places(save_model: str) -> dict[int, Path]:
    """What has the name of a checkpoint, by step, in order."""
    prefix = Path(save_model)
    pattern = re.compile(re.escape(prefix.name) + r"_step_(\d+)")
    found = {}
    for path in prefix.parent.iterdir() if prefix.parent.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def check_places(save_model: str, steps: range, *, every: int, inputs: Iterable[Path]) -> None:
    """Make sure, before a run begins, that its checkpoints can have their names.

    Args:
        save_model: Prefix of the run.
        steps: Those that the run will make.
        every: Updates between two checkpoints; there is one of the last step, too.
        inputs: Checkpoints that the run begins with.

    Raises:
        CheckpointError: Something that is no checkpoint has such a name, or one that the run begins with.
    """
    hint = "give the run another save_model"
    needed = {path.resolve() for path in inputs}
    for step, path in _places(save_model).items():
        if step not in steps:
            continue
        if path.resolve() in needed and (step % every == 0 or step == steps[-1]):
            raise CheckpointError(
                f"The run begins with {path}, but would write its own checkpoint of step {step} there.", hint=hint
            )
        if path.resolve() not in needed and not is_replaceable(path):
            raise CheckpointError(
                f"The checkpoint of step {step} would be written to {path}, but that is no checkpoint.", hint=hint
            )


def check_intact(checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint that is not as it was written. Reads all of it.

    Raises:
        CheckpointError: Names the files.
    """
    if found := _problems(checkpoint):
        refuse(
            f"Checkpoint {checkpoint} must be as it was written to be resumed, but is not: {'; '.join(found[:5])}.",
            hint="name an older one; -train_from auto takes the newest that is intact",
        )


def newest_intact(paths: Iterable[Path], *, set_aside: bool = False) -> Path | None:
    """The last of `paths` that can be gone on from; those behind it are told of.

    Args:
        paths: Checkpoints in the order of their steps.
        set_aside: Rename damaged ones to `<name>.damaged`, so that they count no longer and can be looked at.
    """
    for path in reversed(list(paths)):
        if not (path / STATE_DIRECTORY).is_dir():
            logger.info("%s holds no training state, so that it is not gone on from.", path)
            continue
        found = _problems(path)
        if not found:
            return path
        logger.warning("Checkpoint %s is damaged (%s): the one before it is used.", path, "; ".join(found[:5]))
        if set_aside:
            _set_aside(path)
    return None


def newest_of_run(save_model: str, *, set_aside: bool = False) -> Path | None:
    """The newest checkpoint of `save_model` that can be gone on from."""
    return newest_intact(_directories(save_model).values(), set_aside=set_aside)


def _problems(checkpoint: Path) -> list[str]:
    """What is not as it was written, in a checkpoint or in the average beside it."""
    average = average_path(checkpoint)
    found = [] if not (average / MANIFEST_FILE).exists() else [f"{average.name}/{what}" for what in damage(average)]
    if (checkpoint / MANIFEST_FILE).exists():
        return damage(checkpoint) + found
    if _was_written_with_manifest(checkpoint / STATE_DIRECTORY / STATE_FILE):
        return [f"{MANIFEST_FILE} is missing", *found]
    return found


def _was_written_with_manifest(state: Path) -> bool:
    try:
        return bool(json.loads(state.read_text(encoding="utf-8"))["version"] >= _FIRST_VERSION_WITH_MANIFEST)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _set_aside(path: Path) -> None:
    for one in (path, average_path(path)):
        target = one.with_name(f"{one.name}.{_DAMAGED}")
        with contextlib.suppress(OSError):
            if one.exists() and not target.exists():
                one.rename(target)


def prune(save_model: str, *, keep: int, newest: int, protected: Collection[Path] = ()) -> None:
    """Remove all but the last `keep` checkpoints up to step `newest`; -1 keeps all.

    To be called after the newest is complete. Checkpoints of later steps belong to an earlier, longer run and are left
    alone, as are those in `protected` (the best one, a base that others refer to).
    """
    if keep < 0:
        return
    held = {path.resolve() for path in protected}
    candidates = [path for step, path in checkpoints(save_model).items() if step <= newest]
    for path in candidates[: max(0, len(candidates) - keep)]:
        if path.resolve() in held or average_path(path).resolve() in held:
            continue
        discard(path)
        logger.info("Removed checkpoint %s (keep_checkpoint %d).", path, keep)


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint and the average beside it."""
    # The average last: a checkpoint without its average could not be resumed as it was.
    for path in (checkpoint, average_path(checkpoint)):
        if path.exists():
            remove_directory(path)


class RunLock:
    """The right to be the only process that writes checkpoints of `save_model`.

    The system drops the lock when a process dies, however it does.

    Args:
        save_model: Prefix of the run, whose folder is made.

    Raises:
        CheckpointError: Another run has it, or nothing can be written there.
    """

    def __init__(self, save_model: str) -> None:
        self._save_model = save_model
        self._prefix = Path(save_model).absolute()
        self._file = self._prefix.with_name(f".{self._prefix.name}.lock")
        self._created = not self._prefix.parent.exists()
        self._descriptor = self._take()

    def _take(self) -> int | None:
        folder = self._prefix.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _lock(self._file, self._save_model)
        except OSError as error:
            raise CheckpointError(f"The folder of save_model, {folder}, cannot be written: {error}.") from error

    def recover(self) -> None:
        """Clean up after those that were killed."""
        names = rf"{re.escape(self._prefix.name)}_step_\d+(?:_ema)?"
        recover(self._prefix.parent, names, alone=self._descriptor is not None)

    def renew(self) -> None:
        """Take the lock again where somebody has removed its file, or the whole folder, while the run goes on.

        Raises:
            CheckpointError: Another run has taken it meanwhile.
        """
        if self._descriptor is None or _is_file_of(self._file, self._descriptor):
            return
        logger.warning("%s was removed while the run goes on, perhaps with checkpoints: it is made anew.", self._file)
        os.close(self._descriptor)
        self._descriptor = None
        self._descriptor = self._take()

    def release(self) -> None:
        """Let others write; a folder that was made for the lock and stayed empty is removed again."""
        if self._descriptor is not None:
            if _is_file_of(self._file, self._descriptor):
                self._file.unlink()
            os.close(self._descriptor)
        if self._created:
            with contextlib.suppress(OSError):
                self._prefix.parent.rmdir()


@contextlib.contextmanager
def run_lock(save_model: str) -> Iterator[RunLock]:
    """Have the lock of a run as long as the context lasts, and clean up after runs that were killed.

    Raises:
        CheckpointError: Another run has it, or nothing can be written there.
    """
    lock = RunLock(save_model)
    try:
        lock.recover()
        yield lock
    finally:
        lock.release()


def _lock(file: Path, save_model: str) -> int | None:
    """A descriptor that holds the lock; None where the system or the file system has no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise CheckpointError(
                f"Another run is writing checkpoints of save_model {save_model}.",
                hint="wait until it has ended, or give this one a save_model of its own",
            ) from None
        except OSError:
            os.close(descriptor)
            logger.info("The file system of %s has no locks: see to it that one run alone writes there.", file.parent)
            return None
        # The run before may have removed the file between the two calls: then it is the lock of nothing.
        if _is_file_of(file, descriptor):
            return descriptor
        os.close(descriptor)


def _is_file_of(file: Path, descriptor: int) -> bool:
    """Whether an open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    return False
