"""Checkpoints: the directory format, other toolkits' formats in and out, loading into a `Transformer`, merging."""
