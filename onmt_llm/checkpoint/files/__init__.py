"""Files of a checkpoint: safetensors, the manifest with its checksums, and PyTorch pickles of other toolkits.

`safetensors` reads and writes tensors one at a time; `manifest` records checksums and finds damage; `torch_pickle`
reads PyTorch files through torch's restricted unpickler only.
"""
