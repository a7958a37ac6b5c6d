"""What `import onmt_llm` offers, and what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import onmt_llm


def test_dir_lists_the_public_names() -> None:
    assert dir(onmt_llm) == sorted(onmt_llm.__all__)
    assert all(hasattr(onmt_llm, name) for name in onmt_llm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = onmt_llm.trian  # type: ignore[attr-defined]


def test_torch_is_imported_only_when_it_is_needed() -> None:
    program = """
import sys, onmt_llm
assert "pydantic" not in sys.modules
for call in (onmt_llm.train, onmt_llm.open_engine, onmt_llm.convert, onmt_llm.release):
    try:
        call(config={"log_fiel": "x"})
    except onmt_llm.ConfigError as error:
        assert error.exit_code == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", [name for name in onmt_llm.__all__ if inspect.isfunction(getattr(onmt_llm, name))])
def test_signatures_are_typed(name: str) -> None:
    signature = inspect.signature(getattr(onmt_llm, name))
    assert signature.return_annotation is not signature.empty
    assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())
