"""A run from its options to its result.

`build` builds the components of the training loop; `attempt` restores the state, opens data and reporter, runs the
loop, and after a loss spike chooses the checkpoint to return to; `startup_log` logs what the run is about to do.
`training/train.py` repeats attempts until one ends without a rollback.
"""
