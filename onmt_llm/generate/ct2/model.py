"""A CTranslate2 release, verified and loaded: its number format, threads, random seed and vocabulary."""

from __future__ import annotations

import atexit
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import SystemRandom
from typing import Any, Literal

from onmt_llm.checkpoint.directory import CT2_MODEL_FILE, open_directory, refuse_damage
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import CheckpointError, DataError, UnsupportedError
from onmt_llm.generate.engine import TARGET_VOCABULARIES
from onmt_llm.log import log_once
from onmt_llm.optional import require

REPORT_FILE = "release_report.json"
SCORE_TOKENS = 512
_SYNONYMS = {"int8": "int8_float32"}
"""Two names of one type."""
_HANDLES: weakref.WeakSet[Any] = weakref.WeakSet()
"""The loaded models of this process."""
EXITING = threading.Event()
"""Set when the process begins to end: streams that nobody reads to their end must end too."""


@atexit.register
def _wait_for_batches() -> None:
    """Wait until CTranslate2's threads have dropped the callbacks of their batches, which is after the results are out.

    They take Python's lock to do so, and one that takes it while the interpreter is torn down ends the process with
    "terminate called without an active exception".
    """
    EXITING.set()
    while any(handle.num_active_batches for handle in _HANDLES):
        time.sleep(0.001)


class Ct2Model:
    """A model in CTranslate2's memory.

    Args:
        directory: Release with `model.bin`.
        kind: CTranslate2's class for this kind of model.
        device: "cpu", "cuda" or "auto".
        compute_type: CTranslate2's name of a type; "auto" = as stored.
        threads: CPU threads; 0 = the library's default.
        batch_per_thread: On a CPU each thread computes a batch of its own, instead of all threads one batch.

    Attributes:
        library: The module `ctranslate2`.
        handle: The object of CTranslate2.
        workers: Batches that are computed at once.
        tokens: The (target) vocabulary of the release, in id order.
    """

    def __init__(
        self,
        directory: Path,
        kind: Literal["Generator", "Translator"],
        *,
        device: str = "auto",
        compute_type: str = "auto",
        threads: int = 0,
        batch_per_thread: bool = False,
    ) -> None:
        self.directory, self.kind = directory, kind
        self.library = require("ctranslate2", "the CTranslate2 engine")
        on_cpu = device == "cpu" or (device == "auto" and not self.library.get_cuda_device_count())
        requested = _stored_type(directory) if compute_type in ("auto", "default") else compute_type
        if compute_type == "auto":
            compute_type = stored_compute_type(_stored_type(directory), "cpu" if on_cpu else "cuda")
        self._options = {"device": device, "compute_type": compute_type, "intra_threads": threads}
        self.workers = (threads or os.cpu_count() or 1) if batch_per_thread and on_cpu else 1
        self.handle = self._load()
        self._drawn_with: int | None = None
        self.tokens = model_tokens(directory)
        self._log_replaced_type(requested)

    @property
    def compute_type(self) -> str:
        """The type that the model really runs in."""
        return str(self.handle.compute_type)

    @property
    def device(self) -> str:
        return str(self.handle.device)

    def seed(self, options: GenerationConfig) -> None:
        """Set the seed by which this model draws.

        CTranslate2's threads take a seed when they draw for the first time; their later numbers follow from it.

        Raises:
            UnsupportedError: There was another seed, or several threads would share the numbers in any order.
        """
        if not options.samples:
            return
        wanted = options.seed % 2**32 if options.seed >= 0 else None
        if wanted is not None and self.workers > 1:
            raise UnsupportedError(
                f"A seed needs a CTranslate2 model that computes one batch at a time, but this one computes "
                f"{self.workers}.",
                hint="set threads: 1, or leave out the seed",
            )
        if self._drawn_with is None:
            # Also without a seed: the last one set holds for the process.
            self._drawn_with = SystemRandom().getrandbits(31) if wanted is None else wanted
            self.library.set_random_seed(self._drawn_with)
        elif wanted is not None and wanted != self._drawn_with:
            raise UnsupportedError(
                f"CTranslate2 takes one seed for all answers of a model, which has drawn by another one than "
                f"{options.seed}.",
                hint="leave out the seed, open the model again, or use the checkpoint with the torch engine",
            )

    def _load(self) -> Any:
        level = self.library.get_log_level()
        # CTranslate2's warning about a replaced type is three lines long; `_log_replaced_type` needs one.
        self.library.set_log_level(logging.ERROR)
        try:
            options = dict(self._options)
            if self.workers > 1:
                options |= {"inter_threads": self.workers, "intra_threads": 1}
            handle = getattr(self.library, self.kind)(str(self.directory), **options)
            _HANDLES.add(handle)
            return handle
        except ValueError as error:
            raise UnsupportedError(f"CTranslate2 cannot run {self.directory} as requested: {error}.") from error
        except RuntimeError as error:
            if "failed to allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise CheckpointError(f"CTranslate2 cannot read {self.directory / CT2_MODEL_FILE}: {error}.") from error
        finally:
            self.library.set_log_level(level)

    def _log_replaced_type(self, requested: str | None) -> None:
        if requested and _SYNONYMS.get(requested, requested) != _SYNONYMS.get(self.compute_type, self.compute_type):
            log_once(
                f"{self.directory} is {requested}, which the {self.device} does not run: it runs as "
                f"{self.compute_type}."
            )


@contextmanager
def ct2_errors() -> Iterator[None]:
    """Turn CTranslate2's exceptions into ours, e.g. for an answer longer than its table of positions."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise DataError(f"CTranslate2 cannot answer this: {str(error).rstrip('.')}.") from error


def check_release(directory: Path) -> None:
    """Verify all files of a release before CTranslate2 maps them.

    CTranslate2 trusts the content of model.bin: damage there can corrupt the memory of the process. So a damaged one is
    refused even where damage is ignored.

    Raises:
        CheckpointError: A file is damaged.
    """
    _, manifest = open_directory(directory)
    if manifest is not None:
        refuse_damage(directory, manifest.problems(lambda name: name == CT2_MODEL_FILE), always=True)


def model_tokens(directory: Path) -> list[str]:
    """The (target) vocabulary that CTranslate2 reads, in id order."""
    files = [directory / name for name in TARGET_VOCABULARIES]
    file = next((file for file in files if file.is_file()), files[0])
    try:
        return [str(token) for token in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} must be a JSON list of tokens, but cannot be read as one ({error}).") from error


def stored_compute_type(quantization: str | None, device: str) -> str:
    """CTranslate2's name of the type in which a release of this quantisation should run.

    CTranslate2's own "auto" means the fastest type, which would quantise a float32 release without being asked; its
    "default" turns int16 into int8 where int16 does not run, and then computes nonsense (4.8.5).
    """
    supported = require("ctranslate2", "the CTranslate2 engine").get_supported_compute_types(device)
    return "float32" if quantization == "int16" and "int16" not in supported else "default"


def _stored_type(directory: Path) -> str | None:
    """The quantisation of a release, from its report; None for a release of another program."""
    try:
        return json.loads((directory / REPORT_FILE).read_text(encoding="utf-8")).get("quantization")
    except (OSError, ValueError, AttributeError):
        return None
