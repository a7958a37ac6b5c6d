"""Corpora on the fly: readers, mixing, transforms, buckets and batches. Only `batching` imports torch."""
