"""What `latentq bench` and `benches/` compare: contenders that do the same work, timed in turns."""
