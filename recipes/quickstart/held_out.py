"""Mean loss of a model on the answers of held-out questions, in nats per token, printed as one number.

    python recipes/quickstart/held_out.py demo/base recipes/quickstart/data/valid.jsonl

Works for checkpoints and CTranslate2 releases: both engines score a given text token by token.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from onmt_llm.generate.engine import Engine
from onmt_llm.generate.open import open_engine
from onmt_llm.text.templates.message import Message


def held_out_loss(engine: Engine, path: Path) -> float:
    """Mean negative log-likelihood of the answers' tokens, the token that ends each answer included.

    Args:
        engine: Model with its codec, whose template formats the examples.
        path: JSON lines with `prompt` and `answer`.
    """
    codec = engine.codec
    template = codec.template
    assert template is not None, "the quickstart model has a chat template"
    sequences, begins = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        user, assistant = Message("user", example["prompt"]), Message("assistant", example["answer"])
        begins.append(len(codec.encode_chat([user])))
        tokens = codec.encode_segments(template.render([user, assistant], generation_prompt=False))
        # text that the template adds after the end of an answer is never generated
        while len(tokens) > begins[-1] and tokens[-1] not in codec.stop_tokens:
            tokens.pop()
        sequences.append(tokens)
    # scores[i] belongs to token i + 1
    losses = [
        -score for scores, begin in zip(engine.score(sequences), begins, strict=True) for score in scores[begin - 1 :]
    ]
    return sum(losses) / len(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mean loss of a model on held-out answers, in nats per token.")
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    print(f"{held_out_loss(open_engine(arguments.model, device='cpu'), arguments.data):.4f}")


if __name__ == "__main__":
    main()
