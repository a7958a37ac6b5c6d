"""Vocabulary files and subword models, learned from transformed corpora.

`build` is the job `onmt_llm_build_vocab`; `subwords` learns a SentencePiece or BPE model; `count` counts tokens.
"""
