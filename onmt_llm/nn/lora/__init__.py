"""Low-rank adapters (LoRA, Hu et al. 2021) around frozen layers, and their variants.

A wrapped layer computes base(x) + scale * x A' B'. The base is frozen, A (rank, in) and B (out, rank) are trained, and
scale is alpha / rank. B starts at zero, so a new adapter changes no output. Every variant changes one part of this:

- `layers.py`: plain LoRA for linear layers and token embeddings. Start here.
- `dora.py`: DoRA trains the norm of each row of the adapted weight apart from its direction.
- `init.py`: PiSSA and LoftQ start A and B with a part of the weight, which is taken out of the base.
- `variant.py`: the settings, including rsLoRA's scale and the ranks of single layers.
- `model.py`: adapters of a whole model: add, freeze the rest, switch off, load, merge.
"""
