"""Options with which other toolkits divide a model are understood, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from onmt_llm.config.compat.translate import is_for_opennmt, translate

FULL = {"shard": "full"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"hsdp": True, "sharding_group_size": 4}, {**FULL, "shard_size": 4}),
        ({"hsdp": False, "enable_fsdp": False}, {}),
        ({"hsdp": True, "replica_group_size": 2, "world_size": 8}, {**FULL, "shard_size": 4, "world_size": 8}),
        ({"sharding_group_size": 4, "replica_group_size": 2}, {**FULL, "shard_size": 4}),
        ({"fsdp_version": 2, "fsdp_config": {"offload_params": False, "state_dict_type": "FULL_STATE_DICT"}}, FULL),
        ({"fsdp": ["full_shard", "auto_wrap"], "fsdp_config": {"fsdp_activation_checkpointing": True}}, None),
        ({"fsdp_config": {"sharding_strategy": "NO_SHARD"}}, {"shard": "off"}),
        ({"tensor_parallel_size": 2, "dp_shard_size": 4}, {"tensor_parallel": 2, **FULL, "shard_size": 4}),
        ({"hsdp": True, "shard": "off"}, {"shard": "off"}),
    ],
)
def test_what_they_mean(written: dict[str, Any], meant: dict[str, Any] | None) -> None:
    result = translate(written, {"shard", "shard_size", "world_size"})
    assert result.values == ({**FULL, "use_ckpting": ["block"]} if meant is None else meant) and not result.errors
    assert "world_size" in written or not is_for_opennmt(written, ())


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ({"fsdp_config": {"offload_params": True}}, "fsdp_config.offload_params"),
        ({"fsdp_config": {"sharding_strategy": "SHARD_GRAD_OP"}}, "fsdp_config.sharding_strategy"),
        ({"fsdp_config": {"magic": 1}}, "fsdp_config.magic"),
        ({"fsdp_config": True}, "fsdp_config"),
        ({"fsdp": ["full_shard", "offload"]}, "offload"),
        ({"replica_group_size": 2}, "replica_group_size"),
        ({"replica_group_size": 3, "world_size": 8}, "replica_group_size"),
        ({"replica_group_size": 2, "sharding_group_size": 2, "world_size": 8}, "replica_group_size"),
    ],
)
def test_what_is_refused(written: dict[str, Any], named: str) -> None:
    ((_, sentence),) = translate(written, {"world_size"}).errors
    assert named in sentence
