"""The command that inspects files of PyTorch tensors and imports networks."""
