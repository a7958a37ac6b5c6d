"""Inference: engines that answer prompts, and what is built on them.

An engine (`engine.py`, a Protocol) owns a model with its tokeniser: it takes tokens and `GenerationConfig`, and returns
hypotheses, a stream of deltas, or scores. `open_engine` chooses it by the files of a model. In reading order:

- `engine.py`, `open.py`: the protocol, what engines share and where they differ, and how one is opened.
- `torch/`, `ct2/`: the engines for checkpoints and for CTranslate2 releases.
- `search/`: greedy search, sampling and beam search of the torch engine; `lengths.py`: batches, penalties and limits.
- `session.py`: chats; `line_prompts.py`, `alignment.py`: files of lines; `scoring.py`, `scorers.py`: scores.
"""
