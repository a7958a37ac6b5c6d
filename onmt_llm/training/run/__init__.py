"""A run from its options to its result.

`checks` checks the options, `build` builds the components of the training loop, `attempt` restores the state, opens
data and reporter, and runs the loop; `rollback` chooses the checkpoint to return to after a loss spike; `startup_log`
logs what the run is about to do. `training/train.py` repeats attempts until one ends without a rollback.
"""
