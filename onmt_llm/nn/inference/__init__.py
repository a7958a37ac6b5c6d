"""A model changed for inference alone: fewer and larger products, and compact weights in the formats of fast kernels.

In reading order: `fuse.py` changes a model, `attention.py` and `position_wise.py` are the layers that it puts in place
of others, `packed.py` has linear layers with 16-bit and 8-bit weights.
"""
