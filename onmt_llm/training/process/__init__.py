"""The process of a run: its rank and device (`dist`), random generators (`rng`), signals (`signals`), and memory
(`host_memory`)."""
