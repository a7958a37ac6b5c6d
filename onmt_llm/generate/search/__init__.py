"""Decoding algorithms of the torch engine, on token ids and tensors.

`Decoding` (`state.py`) holds the models and caches of a batch: prefill, then one step per token. `sampling.py` decodes
every row independently (greedy search, sampling) and has the constraints of all searches; `beam.py` keeps the best
hypotheses of each prompt. Both read their options from `GenerationConfig`.
"""
