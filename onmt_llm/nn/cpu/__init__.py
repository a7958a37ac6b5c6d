"""Hand-written kernels for a CPU: each computes what plain torch does, faster or with less memory.

The layers call these functions; on a GPU and under torch.compile they fall back to torch's own operations. The reasons
and the figures are in docs/decisions/012.

- `fused.py`: RMSNorm and SwiGLU, in blocks of rows.
- `dropout.py`: dropout from 16 random bits per element, alone and inside attention.
- `tiled_attention.py`: causal attention in tiles.
- `few_queries.py`: attention of a few queries in bf16, as in decoding.
- `int8_matmul.py`: int8 products of quantised layers.
- `openmp.py`: how torch's threads wait for each other.
"""
