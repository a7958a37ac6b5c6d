"""The data pipeline: from corpus files to batches, without torch until the last step (`batching/batch.py`).

A reader yields records; `parsing` turns a record into an `Example` (text); `transforms` change, split or drop examples,
and one of them tokenises; `Encoder` turns an example into ids (`Encoded`), which `batching` collates into batches.
`sampling` mixes the corpora into one sequence of records, cuts it into buckets and assigns them to ranks. A bucket is
prepared as a whole, by the trainer or by a worker process (`workers`). Its batches depend only on its records, the
options, the seed and its number, so a run resumes exactly with any number of workers and ranks.

Read `spec`, `example`, `corpus`, `bucket` and `pipeline`, in this order.
"""
