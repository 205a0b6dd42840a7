"""Data sets, augmentation and the stream of batches."""
