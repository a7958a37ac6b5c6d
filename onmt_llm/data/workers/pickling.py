"""Restricted pickles between a trainer and its data workers: only known classes are accepted."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import IO, Any

_ARRAYS = frozenset({"ndarray", "dtype", "scalar", "_reconstruct", "_frombuffer"})
_PLAIN = frozenset(
    {("collections", "Counter"), ("collections", "OrderedDict"), ("functools", "partial"), ("re", "_compile")}
    | {("_codecs", "encode"), ("builtins", "int")}
)
TOKENIZERS = ("sentencepiece", "subword_nmt", "tokenizers")


class Restricted(pickle.Unpickler):
    """Reads our own classes, arrays, paths and plain data; anything else is refused by name.

    Args:
        file: File of pickles.
        packages: Further packages or modules whose classes are accepted.
    """

    def __init__(self, file: IO[bytes], packages: Iterable[str] = ()) -> None:
        super().__init__(file)
        self._packages = frozenset({"onmt_llm", *packages})

    def find_class(self, module: str, name: str) -> Any:
        package = module.partition(".")[0]
        is_array = package == "numpy" and name in _ARRAYS
        is_path = package == "pathlib" and name.endswith("Path")
        if is_array or is_path or (module, name) in _PLAIN:
            return super().find_class(module, name)
        found = super().find_class(module, name) if {package, module} & self._packages else None
        # tokenisers refer to their decoding functions
        if isinstance(found, type) or (module == "onmt_llm.text.decoding" and callable(found)):
            return found
        raise pickle.UnpicklingError(f"a trainer and its data workers do not exchange {module}.{name}")
