"""Checkpoints of a run: save them in the background, and resume from them.

A checkpoint is a model directory (`onmt_llm.checkpoint`) with a folder `train_state` (`training/state.py`). The saver
copies the tensors while the loop waits, and a thread writes them. Resuming restores optimiser, random generators and
data position.

Read `saver` with `content` (what a checkpoint contains), then `resume` and `train_from` (what a run resumes). Beside
these: `background` (the thread), `shared_writer` (all ranks write one checkpoint) and `provenance` (the record of the
training).
"""
