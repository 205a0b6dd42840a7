"""Training of one stage: its networks, the train step, epochs and checkpoints."""
