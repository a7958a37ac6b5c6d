"""Objects that the trainer and its data workers accept from each other."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from onmt_llm.data.workers.pickling import Restricted
from onmt_llm.errors import DataError


class Calls:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def exchanged(item, *packages):
    return Restricted(io.BytesIO(pickle.dumps(item)), packages).load()


def test_arrays_paths_counts_and_our_errors_pass():
    array, error = exchanged((np.arange(3, dtype=np.int32), DataError("must", hint="do")))
    assert array.tolist() == [0, 1, 2] and (error.message, error.hint) == ("must", "do")
    assert exchanged((Path("a"), Counter(b=2), {"c": {1.5}})) == (Path("a"), Counter(b=2), {"c": {1.5}})


@pytest.mark.parametrize(
    "item",
    [
        Calls(os.system, "true"),
        Calls(subprocess.Popen, ["true"]),
        Calls(eval, "1"),
        Calls(np.load, "x"),
        Calls(pickle.loads, b""),
    ],
)
def test_anything_else_is_refused(item):
    with pytest.raises(pickle.UnpicklingError, match="do not exchange"):
        exchanged(item)
