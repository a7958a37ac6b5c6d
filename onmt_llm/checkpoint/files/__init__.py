"""Files with tensors: safetensors, and PyTorch pickles of other toolkits.

`safetensors` reads and writes tensors one at a time, and verifies them against the manifest; `torch_pickle` reads
PyTorch files through torch's restricted unpickler only.
"""
