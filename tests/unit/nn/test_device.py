"""`nn.device`: what the values of `device` and `model_dtype` mean."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from onmt_llm.config.model import Dtype
from onmt_llm.errors import UnsupportedError
from onmt_llm.nn.device import DTYPES, resolve_device


@pytest.fixture(params=[True, False], ids=["gpu", "no gpu"])
def has_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return bool(request.param)


def test_every_dtype_option_has_a_torch_dtype() -> None:
    assert set(DTYPES) == set(get_args(Dtype))


def test_auto_is_cuda_where_it_is_available(has_gpu: bool) -> None:
    assert resolve_device("auto") == torch.device("cuda" if has_gpu else "cpu")
    assert resolve_device("auto", 1) == torch.device("cuda:1" if has_gpu else "cpu")


def test_cpu_is_the_cpu_whatever_the_index(has_gpu: bool) -> None:
    assert resolve_device("cpu", 1) == torch.device("cpu")


def test_cuda_must_be_available(has_gpu: bool) -> None:
    if has_gpu:
        assert resolve_device("cuda:1", 0) == torch.device("cuda:1")
        assert resolve_device("cuda", 2) == torch.device("cuda:2")
    else:
        with pytest.raises(UnsupportedError, match="device cuda needs a CUDA GPU"):
            resolve_device("cuda:1")
