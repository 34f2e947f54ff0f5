"""The axis legend of the project, and the annotation names every module uses.

Axis names in shape annotations:

| name      | axis                                                        |
| --------- | ----------------------------------------------------------- |
| `b`       | batch                                                       |
| `f`       | frames of a clip                                            |
| `h w`     | image pixels, row then column                               |
| `lh lw`   | latent pixels (8 image pixels each)                         |
| `t`       | target tokens (a token is 2x2 latent pixels)                |
| `r`       | reference views given to the model                          |
| `v`       | views held in a bank                                        |
| `n`       | points                                                      |
| `k`       | candidates or neighbours                                    |
| `c`       | channels                                                    |
| `heads d` | attention heads and their size                              |

Cameras use OpenCV axes (x right, y down, z forward); `w2c` maps world to camera, `intrinsics`
are in pixels with pixel centres at +0.5; depth is the camera's z, 0 where it is unknown.
"""

from jax import Array
from jaxtyping import Bool, Float, Int, Key, Num, PyTree, Shaped, UInt8, UInt32
from numpy import ndarray

__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Key",
    "Num",
    "PyTree",
    "Shaped",
    "UInt8",
    "UInt32",
    "ndarray",
]
