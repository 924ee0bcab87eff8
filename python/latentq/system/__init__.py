"""This machine and process: progress, text for people, memory, processors."""
