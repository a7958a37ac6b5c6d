"""The folder of a run: names of its checkpoints, the newest intact one, which to keep, and the run's lock."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from onmt_llm.atomic import is_replaceable, recover, remove_directory
from onmt_llm.checkpoint.directory import MANIFEST_FILE, find_damage, refuse
from onmt_llm.config.checkpoint import CONFIG_FILE
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.locks import is_file_of, lock_file
from onmt_llm.log import log_once, logger
from onmt_llm.training.result import RunStatus, has_ended, read_status

STATE_DIRECTORY = "train_state"
STATE_FILE = "state.json"
_DAMAGED = "damaged"
# State files of version 1 were written before there was a manifest.
_FIRST_VERSION_WITH_MANIFEST = 2


def checkpoint_path(save_model: str, step: int) -> Path:
    """Path of the checkpoint of `step`."""
    return Path(f"{save_model}_step_{step}")


def ema_path(checkpoint: Path) -> Path:
    """Path of the running averages of the weights (EMA) that belong to a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}_ema")


def save_request_file(save_model: str) -> Path:
    """The file that requests a checkpoint when it is created."""
    return Path(f"{save_model}.save")


def checkpoints(save_model: str) -> dict[int, Path]:
    """Complete checkpoints with the prefix `save_model`, by step, in order."""
    return {step: path for step, path in _directories(save_model).items() if (path / CONFIG_FILE).is_file()}


def watched_checkpoints(save_model: str, *, every: float) -> Iterator[tuple[dict[int, Path], bool]]:
    """The checkpoints of a run, again and again until the run has ended, and whether this is the last look.

    Args:
        save_model: Prefix of the run.
        every: Seconds between two looks; 0 = one look.

    Raises:
        ConfigError: There is no checkpoint, and one look was asked for.
    """
    while True:
        ended = has_ended(save_model)  # before the look, which then finds the run's last checkpoint
        found = checkpoints(save_model)
        if not found and not every:
            raise ConfigError(
                f"'save_model' must be the prefix of at least one checkpoint, but {save_model}_step_* is none.",
                hint="-watch 60 waits for the first one",
            )
        last = not every or ended
        yield found, last
        if last:
            return
        if (status := read_status(save_model)) in (RunStatus.INTERRUPTED, RunStatus.OUT_OF_TIME):
            log_once(f"The run {save_model} was stopped ({status}); new checkpoints are awaited until it is resumed.")
        time.sleep(every)


def pass_over(path: Path, error: Exception, *, last: bool) -> None:
    """Log that a checkpoint was passed over because it cannot be read: it was removed, or is still being copied.

    Args:
        path: The checkpoint.
        error: Why it cannot be read.
        last: There is no further look: one that is there is damaged.

    Raises:
        Exception: `error`, if the checkpoint is damaged.
    """
    if not path.is_dir():
        logger.warning("%s was removed before it was evaluated (%s).", path, error)
    elif last:
        raise error
    else:
        log_once(f"{path} cannot be read yet, and is tried again: {error}", level=logging.WARNING)


def _directories(save_model: str) -> dict[int, Path]:
    return {step: path for step, path in _named_paths(save_model).items() if path.is_dir()}


def _named_paths(save_model: str) -> dict[int, Path]:
    """Files and folders with the name of a checkpoint, by step, in order."""
    prefix = Path(save_model)
    pattern = re.compile(re.escape(prefix.name) + r"_step_(\d+)")
    found = {}
    for path in prefix.parent.iterdir() if prefix.parent.is_dir() else ():
        match = pattern.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def check_checkpoint_paths(save_model: str, steps: range, *, every: int, inputs: Iterable[Path]) -> None:
    """Check before a run starts that its checkpoints overwrite nothing else.

    Args:
        save_model: Prefix of the run.
        steps: Steps of the run.
        every: Updates between two checkpoints; the last step is saved too.
        inputs: Checkpoints that the run starts from.

    Raises:
        CheckpointError: The path of a checkpoint holds something else, or a checkpoint that the run starts from.
    """
    hint = "give the run another save_model"
    needed = {path.resolve() for path in inputs}
    for step, path in _named_paths(save_model).items():
        if step not in steps:
            continue
        if path.resolve() in needed and (step % every == 0 or step == steps[-1]):
            raise CheckpointError(
                f"The run starts from {path}, but would write its own checkpoint of step {step} there.", hint=hint
            )
        if path.resolve() not in needed and not is_replaceable(path):
            raise CheckpointError(
                f"The checkpoint of step {step} would be written to {path}, but that is not a checkpoint.", hint=hint
            )


def check_intact(checkpoint: Path) -> None:
    """Refuse to resume from a damaged checkpoint. Reads all of it.

    Raises:
        CheckpointError: It is damaged; names the files.
    """
    if found := _problems(checkpoint):
        refuse(
            f"Checkpoint {checkpoint} must be intact to be resumed, but is damaged: {'; '.join(found[:5])}.",
            hint="name an older one; -train_from auto resumes the newest intact one",
        )


def newest_intact(paths: Iterable[Path], *, set_aside: bool = False) -> Path | None:
    """The last of `paths` that can be resumed; the unusable ones after it are logged.

    Args:
        paths: Checkpoints in the order of their steps.
        set_aside: Rename damaged ones to `<name>.damaged`: they are then ignored, and can be examined.
    """
    for path in reversed(list(paths)):
        if not (path / STATE_DIRECTORY).is_dir():
            logger.info("%s has no training state, so training does not resume from it.", path)
            continue
        found = _problems(path)
        if not found:
            return path
        logger.warning("Checkpoint %s is damaged (%s): the one before it is used.", path, "; ".join(found[:5]))
        if set_aside:
            _set_aside(path)
    return None


def newest_of_run(save_model: str, *, set_aside: bool = False) -> Path | None:
    """The newest checkpoint of `save_model` that can be resumed."""
    return newest_intact(_directories(save_model).values(), set_aside=set_aside)


def _problems(checkpoint: Path) -> list[str]:
    """Damage of a checkpoint or of the averages beside it."""
    ema = ema_path(checkpoint)
    found = [] if not (ema / MANIFEST_FILE).exists() else [f"{ema.name}/{what}" for what in find_damage(ema)]
    if (checkpoint / MANIFEST_FILE).exists():
        return find_damage(checkpoint) + found
    if _was_written_with_manifest(checkpoint / STATE_DIRECTORY / STATE_FILE):
        return [f"{MANIFEST_FILE} is missing", *found]
    return found


def _was_written_with_manifest(state: Path) -> bool:
    try:
        return bool(json.loads(state.read_text(encoding="utf-8"))["version"] >= _FIRST_VERSION_WITH_MANIFEST)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _set_aside(path: Path) -> None:
    for one in (path, ema_path(path)):
        target = one.with_name(f"{one.name}.{_DAMAGED}")
        with contextlib.suppress(OSError):
            if one.exists() and not target.exists():
                one.rename(target)


def prune(save_model: str, *, keep: int, newest: int, protected: Collection[Path] = ()) -> None:
    """Remove all but the last `keep` checkpoints up to step `newest`; -1 keeps all.

    Call it when the newest is complete. Checkpoints of later steps belong to an earlier, longer run and are kept, as
    are those in `protected` (the best one, a base that others refer to).
    """
    if keep < 0:
        return
    held = {path.resolve() for path in protected}
    candidates = [path for step, path in checkpoints(save_model).items() if step <= newest]
    for path in candidates[: max(0, len(candidates) - keep)]:
        if path.resolve() in held or ema_path(path).resolve() in held:
            continue
        remove_checkpoint(path)
        logger.info("Removed checkpoint %s (keep_checkpoint %d).", path, keep)


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint and the averages beside it."""
    # The averages last: a checkpoint without them could not be resumed exactly.
    for path in (checkpoint, ema_path(checkpoint)):
        if path.exists():
            remove_directory(path)


class RunLock:
    """The right to be the only process that writes checkpoints of `save_model`.

    The operating system releases the lock when the process ends for any reason.

    Args:
        save_model: Prefix of the run, whose folder is created.

    Raises:
        CheckpointError: Another run holds the lock, or the folder cannot be written.
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
            held = CheckpointError(
                f"Another run is writing checkpoints of save_model {self._save_model}.",
                hint="wait until it has ended, or give this run another save_model",
            )
            return lock_file(self._file, held)
        except OSError as error:
            raise CheckpointError(f"The folder of save_model, {folder}, cannot be written: {error}.") from error

    def recover(self) -> None:
        """Clean up after runs that were killed."""
        names = rf"{re.escape(self._prefix.name)}_step_\d+(?:_ema)?"
        recover(self._prefix.parent, names, exclusive=self._descriptor is not None)

    def renew(self) -> None:
        """Take the lock again if its file, or the whole folder, was removed during the run.

        Raises:
            CheckpointError: Another run has taken it in the meantime.
        """
        if self._descriptor is None or is_file_of(self._file, self._descriptor):
            return
        logger.warning("%s was removed during the run, perhaps with checkpoints: it is recreated.", self._file)
        os.close(self._descriptor)
        self._descriptor = None
        self._descriptor = self._take()

    def release(self) -> None:
        """Release the lock; a folder that was created for it and is still empty is removed."""
        if self._descriptor is not None:
            if is_file_of(self._file, self._descriptor):
                self._file.unlink()
            os.close(self._descriptor)
        if self._created:
            with contextlib.suppress(OSError):
                self._prefix.parent.rmdir()


@contextlib.contextmanager
def run_lock(save_model: str) -> Iterator[RunLock]:
    """A context that holds the lock of a run; cleans up after runs that were killed.

    Raises:
        CheckpointError: Another run holds the lock, or the folder cannot be written.
    """
    lock = RunLock(save_model)
    try:
        lock.recover()
        yield lock
    finally:
        lock.release()
