"""Training data: procedural scenes with ground truth, and readers of files."""
