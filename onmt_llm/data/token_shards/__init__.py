"""Corpora that were tokenised in advance.

`records` encodes an example as arrays, `shard` writes and reads them, `fingerprint` identifies the inputs of a pack, so
that a stale pack is never read. `litdata` reads shards of other programs; `open` chooses the reader of a corpus.
"""
