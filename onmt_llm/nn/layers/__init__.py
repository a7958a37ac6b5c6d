"""The layers that a Transformer consists of.

In reading order: `attention.py`, `feed_forward.py`, `norms.py`, `block.py` (one layer of the residual stream),
`embeddings.py`.
"""
