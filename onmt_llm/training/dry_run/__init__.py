"""`-dry_run`: the size, memory and batches of a run, without training.

The model is built on the meta device, so no weight is allocated. Memory is computed from shapes (`memory`);
activations are counted on a small copy of the model (`activations`); the first micro-batches are really read
(`sampling`). `plan` puts them together.
"""
