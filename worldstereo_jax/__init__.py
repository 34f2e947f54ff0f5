"""WorldStereo in JAX/Flax: one image and a camera path in; a 3D-consistent video out."""

__version__ = "0.1.0"
