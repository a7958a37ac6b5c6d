"""From examples to batches.

`encoder` turns an example into input ids and labels; `packing` puts several documents into a row; `cut` divides the
sorted examples or rows of a bucket into batches; `collate` pads a batch into numpy arrays; `batch` makes them tensors.
"""
