"""How programs are compiled whose outputs a test compares bit by bit, or nearly so."""

from pallas_kernels.compat import quick_compiler_flags

# The older emitters, with which tests are compiled where there are any, fuse each program in its
# own way and so round differently; the newer ones round alike.
ALIKE = {"xla_cpu_use_fusion_emitters": True} if quick_compiler_flags() else None
