"""The engine that runs our own `Transformer`.

- `loading.py`: checkpoints to models, in the requested number format.
- `ensemble.py`: one or several models over given tokens: their log probabilities and alignments.
- `prefix.py`: keys and values of earlier prompts, for prompts that begin like them.
- `prefill.py`: a prompt that is read in pieces.
- `lookup.py`: tokens guessed from what was read, and verified in one pass.
- `engine.py`: `TorchEngine`, which searches and samples by means of `onmt_llm/generate/search/`.
"""
