"""An update does not depend on the layout of its batch: real loop, loss and gradients, within 1e-6 in float32.

torchrun runs this very file for the layout on two ranks.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import tiny
from onmt_llm.config.learning import OptimConfig
from onmt_llm.config.train import RunConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.data.batching.collate import collate, collate_rows
from onmt_llm.data.batching.packing import pack_rows
from onmt_llm.data.example import IGNORED, Encoded
from onmt_llm.nn.init import init_weights
from onmt_llm.nn.lora.model import add_lora, freeze_all_but_lora
from onmt_llm.nn.transformer import Transformer
from onmt_llm.training.components import TrainingComponents
from onmt_llm.training.loop import train_loop
from onmt_llm.training.losses.objective import Objective
from onmt_llm.training.metrics.reporter import Reporter, Totals
from onmt_llm.training.optim.build import trainable
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.optim.schedule import build_schedule
from onmt_llm.training.parallel import TrainingModule, shard
from onmt_llm.training.process.dist import World, open_world
from onmt_llm.training.process.shards import whole
from onmt_llm.training.state import Progress

Figures = dict[str, torch.Tensor]

TOLERANCE, SMOOTHING = 1e-6, 0.1
KINDS = list(product(("decoder-only", "encoder-decoder"), ("full", "lora")))
SHARDED = {"whole": None, "sharded": 0, "a copy a rank": 1}
"""Kinds of runs on two ranks, and their `shard_size`."""
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def examples(kind: str) -> list[Encoded]:
    """Sixteen of two corpora, some with a prompt that is not trained."""
    draw = random.Random(3)

    def ids() -> np.ndarray:
        return np.array(draw.choices(range(3, 23), k=draw.randint(2, 10)), dtype=np.int32)

    made = []
    for _ in range(16):
        tgt = ids()
        labels = np.append(tgt[1:], 2).astype(np.int32)
        labels[: draw.randrange(len(labels))] = IGNORED
        src = ids() if kind == "encoder-decoder" else None
        made.append(Encoded(src, tgt, labels, 0, corpus=int(draw.random() < 0.3)))
    return made


def build(kind: str, trained: str) -> Transformer:
    encoder = {"encoder_layers": 2, "position": "sinusoidal"} if kind == "encoder-decoder" else {"position": "rotary"}
    model = tiny.build(tiny.config(vocab_size=23, kv_heads=2, **encoder))
    init_weights(model, glorot=True)
    if trained == "lora":
        add_lora(model, ["q_proj", "v_proj", "down_proj", "lm_head"], rank=2, alpha=4.0)
        freeze_all_but_lora(model)
        for name, parameter in model.named_parameters():
            if ".lora_b" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model


def padded(given: list[Encoded]) -> Batch:
    return Batch.of(collate(given, pad_id=0, src_pad_id=1))


def packed(given: list[Encoded]) -> Batch:
    return Batch.of(collate_rows(pack_rows(given, "pack", 24), pad_id=0, src_pad_id=1, isolate=True))


LAYOUTS = {
    "one of sixteen": lambda given: [padded(given)],
    "sixteen of one": lambda given: [padded([each]) for each in given],
    "packed": lambda given: [packed(given)],
    "packed in three": lambda given: [packed(given[:4]), packed(given[4:9]), packed(given[9:])],
}


class Keeper(torch.optim.SGD):
    """Keeps the gradients of its last step."""

    def step(self, closure: None = None) -> None:
        self.kept = [whole(p.grad).clone() for group in self.param_groups for p in group["params"]]


class Listener(Reporter):
    """Keeps the figures of the last update."""

    def update(self, step: int, totals: Totals, *, rate: float, grad_norm: float, waited: float = 0.0) -> None:
        (nll, tokens), (other_nll, other_tokens) = totals.by_corpus
        self.figures = {
            "loss": torch.tensor(totals.mean_loss, dtype=torch.float64),
            "xent": torch.tensor(totals.xent, dtype=torch.float64),
            "corpora": torch.tensor([nll / tokens, other_nll / other_tokens], dtype=torch.float64),
            "tokens": torch.tensor([totals.tokens, tokens, other_tokens]),
            "norm": torch.tensor(grad_norm, dtype=torch.float64),
        }


def update(
    model: Transformer,
    batches: list[Batch],
    world: World = ALONE,
    *,
    micro_batches: int = 16,
    shard_size: int | None = None,
) -> Figures:
    """Figures and gradients (`/<parameter>`) of one update by the loop; with `shard_size`, of sharded weights."""
    module, size = TrainingModule(model), sum(p.numel() for p in model.parameters())
    if shard_size is not None:
        shard(module, world, shard_size=shard_size)
        copies = world.size // (shard_size or world.size)
        held = sum(p.to_local().numel() for p in model.parameters())
        assert world.sum(torch.tensor(held)) == copies * size, "each copy of the weights is held once"
    settings = OptimConfig(learning_rate=0.01, max_grad_norm=0.0)
    run = RunConfig(train_steps=1, accum_count=[micro_batches])
    keeper, listener = Keeper(trainable(model)), Listener(start_step=0, train_steps=1, progress="none")
    components = TrainingComponents(
        module=module,
        optimizer=keeper,
        schedule=build_schedule(settings, train_steps=1, hidden_size=32),
        precision=Precision(weights=torch.float32),
        world=world,
        run=run,
        optim=settings,
        objective=Objective(label_smoothing=SMOOTHING),
        corpora=2,
    )
    assert train_loop(components, batches, Progress(), reporter=listener, save=lambda progress: None) == "finished"
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {**listener.figures, **{f"/{name}": g for name, g in zip(names, keeper.kept, strict=True)}}


def plain(model: Transformer, given: list[Encoded]) -> Figures:
    """The same by torch's cross-entropy, one example after the other."""
    sums = torch.zeros(2, 2, dtype=torch.float64)
    loss = torch.zeros(())
    for each in given:
        inputs = [torch.from_numpy(ids).long()[None] for ids in (each.src, each.tgt) if ids is not None]
        logits, labels = model(*inputs)[0], torch.from_numpy(each.labels).long()
        loss = loss + F.cross_entropy(logits, labels, reduction="sum", label_smoothing=SMOOTHING)
        nll = F.cross_entropy(logits, labels, reduction="sum").detach().double()
        sums[each.corpus] += torch.tensor([nll, (labels != IGNORED).sum()])
    nll, tokens = sums.sum(0)
    (loss / tokens).backward()
    gradients = {f"/{name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {
        "loss": loss.detach().double() / tokens,
        "xent": nll / tokens,
        "corpora": sums[:, 0] / sums[:, 1],
        "tokens": torch.stack([tokens, *sums[:, 1]]).float(),
        "norm": torch.stack([g.double().norm() for g in gradients.values()]).norm(),
        **gradients,
    }


def assert_same(got: Figures, wanted: Figures) -> None:
    """All figures and all gradients differ by no more than a millionth of the largest."""
    assert got.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for name, value in wanted.items() if name.startswith("/"))
    for name, value in wanted.items():
        size = largest if name.startswith("/") else float(value.abs().max())
        torch.testing.assert_close(got[name], value, rtol=0, atol=TOLERANCE * size, msg=lambda m, n=name: f"{n}: {m}")


def distributed(folder: Path) -> None:
    """What each rank does: the first ten examples padded, and the other six packed in two micro-batches."""
    world = open_world("cpu", 2)
    for kind, trained in KINDS:
        given = examples(kind)
        share = [padded(given[:10])] if world.is_main else [packed(given[10:12]), packed(given[12:])]
        for sharded, size in SHARDED.items():
            figures = update(build(kind, trained), share, world, micro_batches=2, shard_size=size)
            save_file(figures, folder / f"{kind}-{trained}-{sharded}-{world.rank}.safetensors")
    world.close()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of two gloo ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    tests = Path(__file__).parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize(("kind", "trained"), KINDS)
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts_give_the_update_of_plain_cross_entropy(layout: str, kind: str, trained: str) -> None:
    given, model = examples(kind), build(kind, trained)
    assert_same(update(model, LAYOUTS[layout](given)), plain(build(kind, trained), given))


@pytest.mark.slow
@pytest.mark.parametrize("sharded", SHARDED)
@pytest.mark.parametrize(("kind", "trained"), KINDS)
def test_two_ranks_give_it_too(two_ranks: Path, kind: str, trained: str, sharded: str) -> None:
    """Rank 0 has one micro-batch, rank 1 has two."""
    wanted = plain(build(kind, trained), examples(kind))
    for rank in (0, 1):
        assert_same(load_file(two_ranks / f"{kind}-{trained}-{sharded}-{rank}.safetensors"), wanted)


if __name__ == "__main__":
    distributed(Path(sys.argv[1]))
