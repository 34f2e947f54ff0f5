"""What the model remembers of a scene: coarse points, keyframes, and the geometry between them."""
