"""Evaluation: the perplexity of a text, and the curves of training runs.

`perplexity` measures a text with an engine. `curves` reads the metrics that runs have written, `plotting` plots them.
"""
