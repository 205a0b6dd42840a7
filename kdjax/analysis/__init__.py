"""The analysis of a finished experiment: error overlap and pictures of features."""
