"""Which records come next, on which rank.

`mixing` draws records from the corpora by weight; `sharding` cuts this sequence into buckets, assigns them to ranks and
keeps the position that a run resumes from.
"""
