"""The one Transformer and what wraps its layers. Knows torch and `config.model`, nothing else.

Shape suffixes, everywhere in this package:

    B batch             T target positions   S source or key positions   D hidden_size
    N query heads       K key/value heads    H size of a head            V vocabulary
    P rows of a table   R rotated dimensions of a head

`x_BTD` is a tensor of shape (B, T, D).
"""
