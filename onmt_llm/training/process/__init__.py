"""The process of a run: its rank and device (`dist`), random generators (`rng`), signals (`signals`), and memory
(`host_memory`); with several processes, how they find each other (`rendezvous`), notice that one hangs (`pulse`), and
share the tensors (`shards`)."""
