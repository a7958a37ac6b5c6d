"""From encoded examples to batches.

`packing` puts several documents into a row; `collate` pads a batch of examples or rows into numpy arrays; `batch` makes
them tensors.
"""
