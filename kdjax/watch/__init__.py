"""A terminal view of a running experiment."""
