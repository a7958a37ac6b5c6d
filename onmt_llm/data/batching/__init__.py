"""From examples to batches.

`encoder` turns an example into input ids and labels; `packing` puts several documents into a row; `collate` pads a
batch of examples or rows into numpy arrays; `batch` makes them tensors.
"""
