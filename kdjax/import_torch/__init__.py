"""The command that looks into files of PyTorch's tensors and imports networks."""
