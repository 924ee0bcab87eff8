"""Contenders of `latentq bench` and `benches/`, which do the same work and are timed in turns."""
