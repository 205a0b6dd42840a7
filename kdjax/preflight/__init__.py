"""Compiles a config's train step for hardware that is not there, and reports."""
