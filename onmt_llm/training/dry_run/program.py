"""What a process of a run has in memory beside the model: libraries, and matrix products that oneDNN has compiled.

It is loaded by a small copy of the model, sharded as in the run, that makes one update in this process.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from onmt_llm.config.learning import OptimConfig
from onmt_llm.data.batching.batch import Batch
from onmt_llm.training.dry_run.activations import ActivationEstimate, small_row
from onmt_llm.training.optim.build import build_optimizer, scale_and_clip, trainable
from onmt_llm.training.parallel import TrainingModule, shard
from onmt_llm.training.process.dist import World

_HEAD_SIZE = 8
_LENGTH = 64


def load_what_sharded_runs_load(estimate: ActivationEstimate, optim: OptimConfig) -> None:
    """Make one update of a small copy that is sharded among a single process.

    Args:
        estimate: Has the model, and how it is trained.
        optim: The optimiser.
    """
    world = World(rank=0, size=1, device=torch.device("cpu"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = estimate.small_copy(_HEAD_SIZE)
        module = TrainingModule(model)
        shard(module, world, autocast=estimate.precision.autocast)
        optimizer = build_optimizer(model, optim, pure_bf16=estimate.config.performance.pure_bf16)
        ids_BT, doc_BT = small_row(_LENGTH, estimate.batch.packed)
        encodes = model.encoder is not None
        batch = Batch(
            src_BS=ids_BT if encodes else None,
            src_mask_BS=torch.ones_like(ids_BT, dtype=torch.bool) if encodes else None,
            tgt_BT=ids_BT,
            labels_BT=ids_BT,
            doc_BT=doc_BT,
            num_targets=_LENGTH,
            num_examples=1,
            src_doc_BS=doc_BT if encodes else None,
        )
        with estimate.precision.compute(world.device):
            loss = module(batch)
        loss.scaled.backward()
        scale_and_clip(trainable(model), factor=1 / _LENGTH, max_norm=optim.max_grad_norm)
        optimizer.step()
    finally:
        dist.destroy_process_group()
