"""Data sets that do not fit into memory, read by worker processes."""
