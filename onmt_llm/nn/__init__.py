"""The Transformer, and what wraps its layers. It depends on torch and `config.model` only.

One `Transformer` serves every model family; its config selects norms, positions, biases and so on. LoRA, quantisation
and block expansion replace named layers of a model that was built without them (`wrap.py`). In reading order:

- `transformer.py`: encoder, decoder and output layer; `layers/` has the stacks, blocks and layers they consist of.
- `positions.py`, `masks.py`, `kv_cache.py`: what attention needs besides its input.
- `init.py`, `resize_embeddings.py`, `block_expansion.py`: new weights, other vocabularies, new blocks.
- `lora/`, `quantized.py`: adapters and frozen low-precision layers.
- `inference/`: changes a model for inference: larger products, compact weights.
- `cpu/`, `kernels.py`, `activations/`, `device.py`: speed and memory.

Shape suffixes, everywhere in this package:

    B batch             T target positions   S source or key positions   D hidden_size
    N query heads       K key/value heads    H size of a head            V vocabulary
    P rows of a table   R rotated dimensions of a head

`x_BTD` is a tensor of shape (B, T, D).
"""
