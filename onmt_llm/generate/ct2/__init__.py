"""Engines that run CTranslate2 releases.

CTranslate2 has a class for language models and another one for encoder-decoders; so has this package. Both engines own
the same two parts:

- `model.py`: `Ct2Model`, a loaded release: its number format, threads and random seed.
- `decoding.py`: `Ct2Decoding`, our options in CTranslate2's terms, and its results as our hypotheses and deltas.
- `generator.py`, `translator.py`: the engines.
"""
