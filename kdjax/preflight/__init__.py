"""Compiles a config's train step for hardware that this machine lacks, and reports."""
