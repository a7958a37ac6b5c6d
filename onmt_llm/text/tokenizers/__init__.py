"""Tokenisers: one module for each library, behind the protocol in `base`.

`open` chooses the tokeniser of a checkpoint. `control_guard` wraps any of them so that no text becomes a control token.
SentencePiece can give its pieces as numbers (`pieces`), and caches whole words where that is exact (`word_cache`).
"""
