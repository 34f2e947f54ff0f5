"""Compile the GPU attention kernels for an H200 without one; say what the compiler made of them.

Command: `python experiments/gpu_compile.py`. Needs Python 3.12 with jax 0.11 or later and
`pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-nvvm
nvidia-cuda-crt`; no GPU. XLA, Mosaic GPU or Triton, and ptxas run for real, at the size of 32,760
target tokens that see a bank of 64 views (99,840 keys), 40 heads.

For the Hopper kernels ptxas reports registers (at launch: warpgroups then trade them, 240 for each
that computes and 24 for the one that copies), spilled bytes, and wgmma that it had to serialise;
shared memory is what Mosaic GPU asks for. The Triton kernels are compiled with XLA's switch that
fails on a spill. How fast they are needs a GPU: experiments/attention_bench.py measures it.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import pallas_kernels as pk
from pallas_kernels.pallas_mosaic_gpu import mosaic_gpu_attention
from pallas_kernels.pallas_triton import triton_attention
from worldstereo_jax.evaluation.report import Table, write_section

RESULTS = Path(__file__).parent / "RESULTS.md"
PACKAGES = ("jax_plugins.xla_cuda13", "nvidia.cu13")
# XLA's description of the device, in the text form of its GpuTargetConfigProto.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150754820096 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H200"
"""
# What decides in the masks' tiles.
MASKS = {"bits": "full and partial", "full": "full only", "soft": "soft constraint"}
# As a user compiles, whatever the process was told.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
NO_SPILL = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one kernel; None where it does not say."""

    kernel: str
    registers: int | None
    spilled_bytes: int | None
    serialised: bool | None
    shared_bytes: int | None


def cannot_compile() -> str:
    """Why this machine cannot compile for the H200; empty when it can."""
    if jax.__version_info__ < (0, 11):
        return f"compiling for Hopper needs jax 0.11 or later, and this is {jax.__version__}"
    for package in PACKAGES:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"compiling for Hopper needs {package}, which is not installed"
    return ""


@functools.cache
def device() -> Any:
    """A described H200, as a compilation target."""
    described = topologies.get_topology_desc(
        topology_name="h200", platform="cuda", topology="1x1x1", target_config=H200
    )
    return described.devices[0]


@contextlib.contextmanager
def abstract_device() -> Iterator[None]:
    """Tell the Triton route which device it lowers for."""
    mesh = jax.sharding.AbstractMesh(
        (1,),
        ("device",),
        axis_types=(jax.sharding.AxisType.Auto,),
        abstract_device=jax.sharding.AbstractDevice(
            device_kind="NVIDIA H200", num_cores=None, platform="cuda"
        ),
    )
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def lower_and_compile(function: Callable[..., Any], arguments: Any, **options: Any) -> Any:
    """Compile a function of arrays of these shapes for the H200."""
    target = SingleDeviceSharding(device())
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=target), arguments
    )
    return jax.jit(function).lower(*abstract).compile(compiler_options=OPTIMISED | options)


def attention_arguments(
    tq: int, tk: int, heads: int, head_dim: int, dtype: Any, *, kind: str, capacity: int = 8192
) -> tuple[Any, ...]:
    """Shapes of q, k, v and a mask of a kind of MASKS with room for `capacity` partial tiles."""

    def tokens(length: int) -> pk.TokenGeometry:
        return pk.make_token_geometry(jnp.zeros((1, length, 3)), radius=1.0)

    def mask():
        if kind == "full":
            return pk.dense_pattern(tq, tk)
        if kind == "soft":
            soft = pk.from_geometry(
                tokens(tq), tokens(tk), strength=jnp.ones(heads), tile_q=128, tile_k=128
            )
            return pk.pack_soft_tiles(soft, capacity=capacity)
        return pk.pack_partial_tiles(
            pk.sliding_window(tq, tk, before=500, after=500), capacity=capacity
        )

    q, k = (jax.ShapeDtypeStruct((1, t, heads, head_dim), dtype) for t in (tq, tk))
    return q, k, k, jax.eval_shape(mask)


def slopes(attend: Callable[..., Any]) -> Callable[..., Any]:
    """Forward and backward of an attention (q, k, v, mask, scale) -> (out, lse)."""

    def run(q, k, v, mask):
        def total(q, k, v, strength):
            changed = mask.replace(strength=strength)
            out, lse = attend(q, k, v, changed, q.shape[-1] ** -0.5)
            return jnp.sum(out.astype(jnp.float32)) + jnp.sum(lse)

        return jax.value_and_grad(total, argnums=(0, 1, 2, 3))(q, k, v, mask.strength)

    return run


def compile_mosaic(arguments: tuple[Any, ...]) -> list[Compiled]:
    """Compile the Hopper kernels, forward and backward, and read what ptxas says of each."""
    with tempfile.TemporaryDirectory() as folder:
        changed = {"MOSAIC_GPU_DUMP_TO": folder, "MOSAIC_GPU_DUMP_PTXAS": "1"}
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            lower_and_compile(slopes(mosaic_gpu_attention), arguments)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        found = []
        for report in sorted(Path(folder).glob("*.ptxas")):
            resources = report.with_suffix(".resources.txt")
            name = report.stem.rpartition("_")[0]
            found.append(read_ptxas(name, report.read_text(), resources.read_text()))
    return found


def read_ptxas(kernel: str, report: str, resources: str) -> Compiled:
    """Figures from the text of a ptxas report and of Mosaic GPU's resources."""

    def number(pattern: str, text: str) -> int:
        found = re.search(pattern, text)
        if found is None:
            raise ValueError(f"no {pattern!r} in the compiler's report of {kernel}:\n{text}")
        return int(found.group(1))

    spilled = number(r"(\d+) bytes spill stores", report)
    spilled += number(r"(\d+) bytes spill loads", report)
    return Compiled(
        kernel,
        number(r"Used (\d+) registers", report),
        spilled,
        "wgmma" in report and "serialized" in report,
        number(r"smem_scratch_bytes=(\d+)", resources),
    )


def compile_triton(arguments: tuple[Any, ...]) -> None:
    """Compile the Triton kernels, forward and backward; fails when registers spill."""
    with abstract_device():
        lower_and_compile(slopes(triton_attention), arguments, **NO_SPILL)


def main() -> None:
    """Compile all, print, and write the section."""
    parser = argparse.ArgumentParser(description="Compile the GPU kernels for an H200.")
    parser.add_argument("--queries", type=int, default=32_760)
    parser.add_argument("--keys", type=int, default=99_840)
    parser.add_argument("--heads", type=int, default=40)
    args = parser.parse_args()
    reason = cannot_compile()
    if reason:
        parser.exit(2, f"{reason}\n")

    rows = []
    for head_dim in (64, 128):
        for dtype, kind in (("bfloat16", "bits"), ("float16", "full"), ("bfloat16", "soft")):
            arguments = attention_arguments(
                args.queries, args.keys, args.heads, head_dim, dtype, kind=kind
            )
            case = (str(head_dim), dtype, MASKS[kind])
            for each in compile_mosaic(arguments):
                rows.append(
                    (
                        f"Hopper {each.kernel.replace('_', ' ')}",
                        *case,
                        str(each.registers),
                        str(each.spilled_bytes),
                        "yes" if each.serialised else "no",
                        f"{(each.shared_bytes or 0) / 1024:.0f}",
                    )
                )
                print(*rows[-1], flush=True)
            start = time.perf_counter()
            compile_triton(arguments)
            rows.append(("Triton, all three", *case, "", "0", "", ""))
            print(*rows[-1], f"{time.perf_counter() - start:.0f} s", flush=True)
    table = Table(
        (
            "kernel",
            "head size",
            "dtype",
            "tiles",
            "registers at launch",
            "spilled bytes",
            "wgmma serialised",
            "shared memory KiB",
        ),
        rows,
    )
    facts = (
        f"Compiled for an H200 by XLA, Mosaic GPU or Triton, and ptxas, without the GPU: "
        f"{args.queries:,} queries, {args.keys:,} keys, {args.heads} heads. Speed is not measured."
    )
    print(f"{facts}\n\n{table.markdown()}")
    write_section(
        RESULTS,
        "GPU kernels, compiled",
        [facts, table],
        command="python experiments/gpu_compile.py",
    )


if __name__ == "__main__":
    main()
