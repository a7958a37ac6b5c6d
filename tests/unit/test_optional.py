"""Optional packages."""

from __future__ import annotations

import json

import pytest

from onmt_llm.errors import UnsupportedError
from onmt_llm.optional import require


def test_a_package_that_is_there_is_imported() -> None:
    assert require("json", "this test") is json


def test_a_missing_package_is_named_with_the_feature_that_needs_it() -> None:
    with pytest.raises(UnsupportedError, match="quant_type: x needs the package 'no-such-thing'") as error:
        require("no_such_thing", "quant_type: x", "no-such-thing")
    assert error.value.hint == "pip install no-such-thing"
    with pytest.raises(UnsupportedError, match="needs the package 'no_such_thing'"):
        require("no_such_thing", "quant_type: x")
