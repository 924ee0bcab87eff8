"""The parts of `benches/gpu.py`: one script that measures and checks everything about the CUDA path."""
