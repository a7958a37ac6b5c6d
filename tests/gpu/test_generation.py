"""Generation on a GPU: recorded steps give the answers of ordinary ones."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch
from gpu_runs import WORDS, GpuRuns

from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.search import static_step
from onmt_llm.generate.torch.engine import TorchEngine

DEVICE = os.environ.get("ONMT_LLM_TEST_DEVICE", "cuda")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return GpuRuns(Path(tmp_path_factory.mktemp("gpu")), DEVICE).base()


@pytest.mark.parametrize("prompts", [1, 5])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_recorded_steps_give_the_same_answers(model: str, prompts: int, dtype: str) -> None:
    opened = TorchEngine.open(model, device=DEVICE, dtype=dtype)
    rng = random.Random(1)
    texts = [rng.choices(WORDS, k=rng.randint(2, 9)) for _ in range(prompts)]
    options = GenerationConfig(max_length=90, min_length=90, random_sampling_topk=1)
    recorded = TorchEngine(opened.model, opened.codec, static_steps=True)
    found, wanted = recorded.generate(texts, options), opened.generate(texts, options)
    if dtype == "fp32":
        assert [answer.tokens for (answer,) in found] == [answer.tokens for (answer,) in wanted]
    assert [len(answer.tokens) for (answer,) in found] == [90] * prompts


def test_steps_on_a_gpu_are_graphs(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[static_step._Step] = []
    build = static_step._Step.__init__
    monkeypatch.setattr(static_step._Step, "__init__", lambda step, *given: (made.append(step), build(step, *given))[1])
    engine = TorchEngine.open(model, device=DEVICE, cuda_graphs=True)
    engine.generate([WORDS[:4]], GenerationConfig(max_length=30, min_length=30, random_sampling_topk=1))
    if DEVICE == "cpu":
        assert not made  # graphs are CUDA's
    else:
        assert made and all(isinstance(step._graph, torch.cuda.CUDAGraph) for step in made)
