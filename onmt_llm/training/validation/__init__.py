"""Validation during training.

`validate` computes perplexity and accuracy on the validation corpora, `generation` lets the model translate or answer
them and scores the output, and `early_stopping` decides when to stop.
"""
