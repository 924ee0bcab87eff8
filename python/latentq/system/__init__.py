"""Facts of this machine and process: progress, memory, processors."""
