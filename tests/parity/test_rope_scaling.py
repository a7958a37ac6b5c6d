"""Generation beyond the original context against `transformers`: frequencies that depend on the length of the text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity.test_converters_hf import save_model
from parity.test_families import ENDS, MODELS

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.load import load_model
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.generate.search.sampling import Constraints, DecodingRow, sample
from onmt_llm.generate.search.state import Decoding

transformers = pytest.importorskip("transformers")

PROMPTS = [[5, 290, 17, 44, 3, 120], [8, 250, 99], [31, 7, 61, 12, 30, 9, 77, 201, 44, 5, 6]]
"""Two grow beyond the original context of 8 tokens, at different steps; one begins there."""
ANSWER = 9


@pytest.mark.parametrize("name", [name for name in MODELS if "phi3 longrope" in name or "dynamic" in name])
@torch.no_grad()
def test_a_batch_generates_what_transformers_generates_from_each_prompt(tmp_path: Path, name: str) -> None:
    """A row's frequencies are those of its own length, and Phi-3 computes its keys again when they change."""
    kind, settings = MODELS[name]
    theirs = save_model(tmp_path / "hf", kind, {**settings, **ENDS, "eos_token_id": None})
    model = load_model(convert(tmp_path / "hf", tmp_path / "ours"))
    constraints = Constraints(end_ids=(), max_lengths=[ANSWER] * len(PROMPTS))
    rows = [DecodingRow(prompt) for prompt in range(len(PROMPTS))]
    scores = []
    decoding = Decoding([model], PROMPTS)
    for number, _ in enumerate(sample(decoding, list(rows), options=GenerationConfig(), constraints=constraints)):
        if number % len(PROMPTS) == 0:
            scores.append(decoding.logits_RV)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, rows, strict=True)):
        found = theirs.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=ANSWER,
            return_dict_in_generate=True,
            output_logits=True,
        )
        assert answer.tokens == found.sequences[0, len(prompt) :].tolist()
        ours = torch.stack([step_RV[row] for step_RV in scores])
        assert (ours - torch.cat(found.logits)).abs().max() <= 1e-5
