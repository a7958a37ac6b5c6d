"""Training: from a configuration to checkpoints.

A *run* (`train.py`) is one or more *attempts* (`run/attempt.py`): an attempt builds the components (`components.py`)
and runs the training loop (`loop.py`); after a loss spike the next attempt starts from an earlier checkpoint. The
loop is straight code: micro-batches, forward, backward, one optimiser step, then report, validate and save when they
are due. Everything that changes during a run is in `Progress` (`state.py`), the optimiser and the data position;
checkpoints hold all of it, so a resumed run is exact.

Read `loop.py`, `components.py`, `run/attempt.py`, `train.py`; then the parts: `setup/` (what a run starts from),
`losses/`, `optim/`, `metrics/`, `validation/`, `checkpointing/`, `process/` (rank, signals, memory), `dry_run/` (size
and memory in advance).
"""
