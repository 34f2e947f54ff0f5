"""Training: state, losses, checkpoints, the loop and its curves."""
