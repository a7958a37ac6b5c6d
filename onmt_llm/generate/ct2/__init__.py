"""Engines that run CTranslate2 releases.

CTranslate2 has a class for language models and another one for encoder-decoders; so has this package. Both engines are
built from three parts:

- `model.py`: `Ct2Model`, a loaded release: its number format, threads and random seed.
- `decoding.py`: `Ct2Decoding`, our options in CTranslate2's terms, and its results as our hypotheses and deltas.
- `engine.py`: `Ct2Engine`, what both engines do alike.
- `generator.py`, `translator.py`: the engines.
"""
