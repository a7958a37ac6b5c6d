"""OpenNMT-py's names of layers, as `lora_layers` and `quant_layers` accept them."""

from __future__ import annotations

OPENNMT_LAYERS = {
    "linear_query": "q_proj",
    "linear_keys": "k_proj",
    "linear_values": "v_proj",
    "final_linear": "o_proj",
    "w_2": "down_proj",
    "w_3": "up_proj",
    "self_attn": "self_attn",
    "context_attn": "cross_attn",
    "feed_forward": "mlp",
}
"""OpenNMT-py's layer names. `w_1` is missing: the gate of a gated feed-forward layer, else the up-projection."""


def layer_name(name: str, *, gated: bool) -> str:
    """Translate a layer name of OpenNMT-py into ours; any other name is returned unchanged.

    Args:
        name: e.g. "linear_query", "context_attn.linear_query", "w_1" or already "q_proj".
        gated: Whether the model's feed-forward layers are gated.
    """
    parts = []
    for part in name.split("."):
        if part == "w_1":
            parts.append("gate_proj" if gated else "up_proj")
        else:
            parts.append(OPENNMT_LAYERS.get(part, part))
    return ".".join(parts)
