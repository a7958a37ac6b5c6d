"""A server over tiny models, which the tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import tiny
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import release
from onmt_llm.serve.models import ModelSpec
from serving import Gate, Server, running

SHORT = GenerationConfig(max_length=8)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat model (`torch`), its release (`ct2`), and a translation model (`mt`)."""
    folder = tmp_path_factory.mktemp("served")
    checkpoint = tiny.write_chat_model(folder / "torch")
    release(checkpoint, folder / "ct2", text="some text to verify")
    tiny.write_checkpoint(folder / "mt", tiny.seq2seq())
    return folder


@pytest.fixture(scope="session")
def spec(models: Path) -> Callable[..., ModelSpec]:
    """Makes the specification of a model in that folder."""

    def make(name: str, **fields: Any) -> ModelSpec:
        opener = partial(open_engine, models / name, device="cpu", threads=1)
        return ModelSpec(name, **{"open": opener, "generation": SHORT, **fields})

    return make


@pytest.fixture(scope="session")
def server(spec: Callable[..., ModelSpec]) -> Iterator[Server]:
    """A server of all three models, without keys."""
    with running([spec("torch"), spec("ct2"), spec("mt")]) as server:
        yield server


@pytest.fixture
def gate(models: Path) -> Gate:
    """An engine that answers `x` after `x` as long as its gate is open."""
    return Gate(open_engine(models / "torch", device="cpu"))


@pytest.fixture
def gated(gate: Gate) -> ModelSpec:
    return ModelSpec("torch", lambda: gate, generation=SHORT)  # type: ignore[arg-type, return-value]
