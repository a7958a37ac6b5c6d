"""A toy NLLB in the files of Hugging Face, trained by `transformers` on a pair of languages, and data for a new pair.

    python recipes/nllb_finetune/make_toy_nllb.py toy

writes `toy/hf` (an M2M100 with NLLB's tokeniser and three language codes) and text files for English to French, which
the model can translate, and English to German, which it has never seen. A sentence is a row of digits in words.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import sentencepiece
import torch
import transformers

WORDS = {
    "eng_Latn": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "fra_Latn": ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"],
    "deu_Latn": ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
}
PAIRS = {"french": "fra_Latn", "german": "deu_Latn"}
SIZES = {"train": 2000, "valid": 60, "test": 60}
STEPS = 400
BATCH = 64


def write_texts(folder: Path) -> None:
    """Write `<split>.<pair>.src` and `.tgt`; no row of digits is in two files."""
    rng = random.Random(1)
    seen: set[tuple[int, ...]] = set()
    for pair, code in PAIRS.items():
        for split, size in SIZES.items():
            rows: list[tuple[int, ...]] = []
            while len(rows) < size:
                row = tuple(rng.choices(range(10), k=rng.randint(4, 7)))
                if row not in seen:
                    seen.add(row)
                    rows.append(row)
            for side, language in (("src", "eng_Latn"), ("tgt", code)):
                lines = [" ".join(WORDS[language][digit] for digit in row) for row in rows]
                (folder / f"{split}.{pair}.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path) -> transformers.PreTrainedTokenizerBase:
    """Train NLLB's kind of tokeniser: a SentencePiece model, and the language codes after it."""
    words = [word for language in WORDS.values() for word in language]
    with (folder / "sentencepiece.bpe.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(words * 20),
            model_writer=file,
            model_type="bpe",
            vocab_size=120,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    settings = {"tokenizer_class": "NllbTokenizer", "additional_special_tokens": list(WORDS)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = transformers.NllbTokenizer.from_pretrained(folder, src_lang="eng_Latn", tgt_lang="fra_Latn")
    tokenizer.save_pretrained(folder)
    saved = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**saved, "tgt_lang": None}), encoding="utf-8")
    return tokenizer


def train(folder: Path, tokenizer: transformers.PreTrainedTokenizerBase, steps: int) -> transformers.PreTrainedModel:
    """Train a new model on the French pair, with the tokens and labels of `transformers`."""
    torch.manual_seed(1)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in SHAPE.items()}
    config = transformers.M2M100Config(
        vocab_size=len(tokenizer) + 9,
        d_model=64,
        max_position_embeddings=64,
        scale_embedding=True,
        dropout=0.0,
        attention_dropout=0.0,
        decoder_start_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    model = transformers.M2M100ForConditionalGeneration(config)
    sources, targets = (
        (folder / f"train.french.{side}").read_text(encoding="utf-8").splitlines() for side in ("src", "tgt")
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    rng = random.Random(2)
    for step in range(steps):
        rows = rng.sample(range(len(sources)), BATCH)
        batch = tokenizer(
            [sources[row] for row in rows],
            text_target=[targets[row] for row in rows],
            padding=True,
            return_tensors="pt",
        )
        batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    return model


SHAPE = {"layers": 1, "attention_heads": 4, "ffn_dim": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a toy NLLB and its data.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    folder: Path = arguments.directory
    (folder / "hf").mkdir(parents=True, exist_ok=True)
    write_texts(folder)
    tokenizer = write_tokenizer(folder / "hf")
    train(folder, tokenizer, arguments.steps).save_pretrained(folder / "hf")


if __name__ == "__main__":
    main()
