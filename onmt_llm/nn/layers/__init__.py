"""The layers that a Transformer consists of.

In reading order: `attention.py`, `position_wise.py` (feed-forward, norms, embedding), `block.py` (one layer of the
residual stream), `stack.py` (encoder or decoder).
"""
