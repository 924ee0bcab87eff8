"""The parts of `rivals.py` that run in each rival's own environment: they import latentq only where it races."""
