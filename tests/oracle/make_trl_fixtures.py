"""Fixed logits and the losses that TRL computes from them: `tests/data/preference.npz`, for DPO, ORPO and KTO.

    pip install trl datasets
    python tests/oracle/make_trl_fixtures.py tests/data/preference.npz

TRL's own trainers run on two tiny random models, a policy and a reference. Stored are, for each loss: the ids, where
the answers are, the logits of both models, the loss, and its gradient with respect to the policy's output layer.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from datasets import Dataset
from datasets.fingerprint import Hasher
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

WORDS = [f"w{i}" for i in range(12)]
PAIRS = [
    {"prompt": "w0 w1 w2", "chosen": " w3 w4", "rejected": " w5"},
    {"prompt": "w6", "chosen": " w7", "rejected": " w8 w9 w10"},
]
LABELLED = [
    {"prompt": "w0 w1 w2", "completion": " w3 w4", "label": True},
    {"prompt": "w6", "completion": " w8 w9 w10", "label": False},
    {"prompt": "w2 w4", "completion": " w1", "label": True},
]
DPO: dict[str, dict[str, Any]] = {
    "sigmoid": {"beta": 0.3},
    "hinge": {"beta": 0.3},
    "ipo": {"beta": 0.3},
    "robust": {"beta": 0.3, "label_smoothing": 0.1},
}


def tokenizer() -> Any:
    tokens = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokens, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    roles = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **roles)


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def shared(folder: str, **settings: Any) -> dict[str, Any]:
    fixed = {"output_dir": folder, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "bf16": False}
    return {**fixed, "gradient_checkpointing": False, "remove_unused_columns": False, **settings}


def batch_of(trainer: Any) -> dict[str, Any]:
    trainer.args.dataloader_pin_memory = False
    return trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])


@torch.no_grad()
def logits(of: Any, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    return of(input_ids=ids, attention_mask=mask).logits.float().numpy()


def record(policy: Any, reference: Any | None, batch: dict[str, Any], loss: torch.Tensor) -> dict[str, np.ndarray]:
    """What our test needs: of every row ids, where the answer is, logits; the loss and its gradient."""
    policy.zero_grad()
    loss.backward()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    found = {
        "ids": ids.numpy(),
        "mask": mask.numpy(),
        "answer": batch["completion_mask"].numpy(),
        "policy": logits(policy, ids, mask),
        "loss": np.array(loss.item()),
        "gradient": policy.lm_head.weight.grad.numpy().copy(),
        "head": policy.lm_head.weight.detach().numpy().copy(),
    }
    with torch.no_grad():
        found["hidden"] = policy.model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    if reference is not None:
        found["reference"] = logits(reference, ids, mask)
    return found


def dpo(folder: str, kind: str) -> dict[str, np.ndarray]:
    policy, reference = model(0), model(1)
    args = DPOConfig(**shared(folder, loss_type=[kind], **DPO[kind]))
    data = Dataset.from_list(PAIRS)
    trainer = DPOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer())
    batch = batch_of(trainer)
    return record(policy, reference, batch, trainer.compute_loss(policy, dict(batch)))


def kto(folder: str) -> dict[str, np.ndarray]:
    policy, reference = model(0), model(1)
    settings = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    args = KTOConfig(**shared(folder, **settings))
    data = Dataset.from_list(LABELLED)
    trainer = KTOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer())
    batch = batch_of(trainer)
    loss = trainer.compute_loss(policy, dict(batch))
    found = record(policy, reference, batch, loss)
    foreign = {"input_ids": batch["KL_input_ids"], "attention_mask": batch["KL_attention_mask"]}
    ids, mask = foreign["input_ids"], foreign["attention_mask"]
    return {
        **found,
        "label": np.array([bool(label) for label in batch["label"]]),
        "foreign_ids": ids.numpy(),
        "foreign_answer": batch["KL_completion_mask"].numpy(),
        "foreign_policy": logits(policy, ids, mask),
        "foreign_reference": logits(reference, ids, mask),
    }


def orpo(folder: str) -> dict[str, np.ndarray]:
    """TRL adds the likelihood of prompt and answer: stored is its odds-ratio term alone, the mean over pairs."""
    policy = model(0)
    args = ORPOConfig(**shared(folder, beta=0.3, max_length=64))
    trainer = ORPOTrainer(policy, args=args, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer())
    batch = batch_of(trainer)
    good, bad, *_ = trainer.concatenated_forward(policy, batch)
    losses, *_ = trainer.odds_ratio_loss(good, bad)
    joined = trainer.concatenated_inputs(batch, is_encoder_decoder=False, padding_value=0, device=torch.device("cpu"))
    rows = {
        "input_ids": joined["concatenated_input_ids"],
        "attention_mask": joined["concatenated_attention_mask"],
        "completion_mask": (joined["concatenated_labels"] != -100).long(),
    }
    return record(policy, None, rows, -losses.mean())


def main() -> None:
    # No cache is wanted, and not every version of dill can pickle what would be its key.
    Hasher.hash = classmethod(lambda cls, value: secrets.token_hex(8))  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        made = {f"dpo_{kind}": dpo(folder, kind) for kind in DPO}
        made.update(kto=kto(folder), orpo=orpo(folder))
    flat = {f"{loss}/{name}": array for loss, arrays in made.items() for name, array in arrays.items()}
    np.savez_compressed(Path(sys.argv[1]), **flat)
    print({loss: float(arrays["loss"]) for loss, arrays in made.items()})


if __name__ == "__main__":
    main()
