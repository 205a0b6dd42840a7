"""The search of a config's hyper-parameters: `python -m kdjax.sweep`."""
