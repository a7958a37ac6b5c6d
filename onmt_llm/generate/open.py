"""`open_engine`: open a model with the engine that its files need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmt_llm.checkpoint.directory import CT2_MODEL_FILE, spellings
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.generate.engine import TARGET_VOCABULARIES, Engine, as_paths


def open_engine(
    path: str | Path | Sequence[str | Path],
    *,
    device: str = "auto",
    compute_type: str = "auto",
    dtype: str | None = None,
    threads: int = 0,
    average_probabilities: bool = False,
    prefix_cache: int = 256,
    prompt_lookup: bool = True,
    cuda_graphs: bool = False,
) -> Engine:
    """Load a model for inference: a directory with `model.bin` with CTranslate2, a checkpoint or adapter with torch.

    Args:
        path: Checkpoint, adapter or CTranslate2 release; a checkpoint may be written with a trailing `.pt`. Several
            checkpoints with one vocabulary form an ensemble.
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        compute_type: "auto" = the type in which the model is stored, or the nearest that the device supports; otherwise
            CTranslate2's name of a type (`int8`, `int8_float16`, `float16`, `bfloat16`, `float32` ...). The torch
            engine supports the float types and `int8`.
        dtype: "fp32", "bf16" or "fp16" for the torch engine; null = by `compute_type`.
        threads: CPU threads; 0 = the library's default.
        average_probabilities: An ensemble averages probabilities instead of log probabilities.
        prefix_cache: MiB for the keys and values of earlier prompts of the torch engine; 0 = none.
        prompt_lookup: The torch engine guesses tokens that followed the same words earlier.
        cuda_graphs: On a GPU the torch engine replays steps as CUDA graphs (`search/static_step.py`).

    Raises:
        CheckpointError: There is no usable model at `path`.
        ConfigError: The models cannot form an ensemble.
        UnsupportedError: The device or the type is not available.
    """
    paths = as_paths(path)
    options: dict[str, Any] = {"device": device, "compute_type": compute_type, "threads": threads}
    releases = [release for release in map(find_release, paths) if release is not None]
    if releases:
        if len(paths) > 1:
            raise ConfigError(
                f"The models of an ensemble must be checkpoints, but {releases[0]} is a CTranslate2 release.",
                hint="CTranslate2 runs one model; give the checkpoints that it was released from",
            )
        if (releases[0] / TARGET_VOCABULARIES[0]).is_file():
            from onmt_llm.generate.ct2.generator import Ct2Generator

            return Ct2Generator.open(releases[0], **options)
        from onmt_llm.generate.ct2.translator import Ct2Translator

        return Ct2Translator.open(releases[0], **options)
    from onmt_llm.generate.torch.engine import TorchEngine

    return TorchEngine.open(
        paths,
        dtype=dtype,
        average_probabilities=average_probabilities,
        prefix_cache=prefix_cache,
        prompt_lookup=prompt_lookup,
        cuda_graphs=cuda_graphs,
        **options,
    )


def find_release(path: str | Path) -> Path | None:
    """The CTranslate2 directory at `path`, or None if there is something else.

    Raises:
        CheckpointError: It is a CTranslate2 directory, but without the files that describe its prompts and tokens.
    """
    for candidate in spellings(Path(path)):
        if (candidate / CT2_MODEL_FILE).is_file():
            missing = [name for name in ("config.yaml", "config.json") if not (candidate / name).is_file()]
            if not any((candidate / name).is_file() for name in TARGET_VOCABULARIES):
                missing.append(TARGET_VOCABULARIES[0])
            if missing:
                raise CheckpointError(
                    f"The CTranslate2 model {candidate} must hold {', '.join(missing)}, but does not.",
                    hint="release it with release_model, which copies the files that belong to the weights",
                )
            return candidate
    return None
