"""`dataset_files`: the files of a folder of Hugging Face `datasets`, as it was saved, cached or downloaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Any

from onmt_llm.errors import DataError

_KINDS = (".arrow", ".parquet")
_NAMES = ("train", "validation", "test")
"""Splits that are looked for to say what a folder holds."""


def dataset_files(folder: Path, split: str) -> list[Path]:
    """The Arrow or Parquet files of one split, in order.

    Args:
        folder: Written by `save_to_disk`, a folder of the cache of `load_dataset`, or a download from the Hub.
        split: `train` ...

    Raises:
        DataError: There is no such split, or a file of it is missing.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if split not in splits:
            raise _no_split(folder, split, splits)
        return dataset_files(folder / split, split)
    state = folder / "state.json"
    if state.is_file():
        description = _json(state)
        saved = description.get("_split")
        if saved not in (None, split):
            raise _no_split(folder, split, [saved])
        return [folder / item["filename"] for item in description.get("_data_files", [])]
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in _KINDS and not path.name.startswith("cache-")]
    chosen = [path for path in found if _is_of(split, path.relative_to(folder))]
    if not chosen:
        raise _no_split(
            folder, split, [n for n in _NAMES if any(_is_of(n, path.relative_to(folder)) for path in found)]
        )
    return chosen


def _is_of(split: str, path: Path) -> bool:
    """Whether a path names a split: `train-00000-of-00002.arrow`, `squad-train.arrow`, `default/train/0000.parquet`."""
    return re.search(rf"(^|[-_./]){re.escape(split)}([-_./]|$)", path.as_posix()) is not None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, JSONDecodeError) as error:
        raise DataError(f"{path} must describe a dataset, but cannot be read: {error}.") from error
    return found if isinstance(found, dict) else {}


def _no_split(folder: Path, split: str, splits: list[Any]) -> DataError:
    return DataError(
        f"{folder} must hold Arrow or Parquet files of the split '{split}', but holds "
        f"{'the splits ' + ', '.join(map(str, splits)) if splits else 'none'}.",
        hint="dataset_split names another split",
    )
