"""Decoding algorithms of the torch engine, on token ids and tensors only.

`Decoding` (`state.py`) holds the models and caches of a batch: prefill, then one step per token. `greedy.py` decodes
every row independently (greedy search, sampling), `beam.py` keeps the best hypotheses of each prompt. `sampling.py` and
`penalties.py` are pure functions on logits and scores.
"""
