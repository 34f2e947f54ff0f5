"""Host memory while a checkpoint of more than 8 GB is loaded, tensor by tensor.

A checkpoint of the 14B memory model's layers (10 of its 40) with random bfloat16 values is
written as four shards, then loaded in processes of their own: in the file's type, on eight
simulated devices, with matrices brought into 8 bits as they are read, and with matrices brought
into 8 bits when all are there. On a CPU the "devices" lie in host memory too: the overhead is the
process's peak (VmHWM) less what it took before and less the parameters.

Expected: overhead below 2 GB plus the largest tensor (0.31 GB); the budget for tensors under way
is 1 GiB. In 8 bits only when all are there, it is the other half of the parameters and more. The
checkpoint is deleted afterwards.

Command: python experiments/streaming_memory.py
Record (2026-11-26, two AMD EPYC cores shared with other jobs): 0.55 GB over one device's
parameters, 0.59 GB over those of eight, 0.71 GB over those in 8 bits as they are read, 5.01 GB
when all were there first; 9.15 GB in 83 to 122 s.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

SHARDS = 4
LAYERS = 10
CASES = ((1, "bfloat16"), (8, "bfloat16"), (1, "int8"), (1, "int8 afterwards"))
"""Devices, and how the matrices are kept."""
TITLE = "Loading 14B weights tensor by tensor"


def config():
    """The 14B memory model with fewer layers."""
    import dataclasses

    from worldstereo_jax.config import get_preset

    full = get_preset("wan_14b_memory")
    assert full.control is not None
    return full.replace(
        num_layers=LAYERS, control=dataclasses.replace(full.control, num_layers=LAYERS // 2)
    )


class RandomTensors(Mapping):
    """bfloat16 values of moderate size, made when asked for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def __getitem__(self, name: str):
        import ml_dtypes
        import numpy as np

        shape = self.shapes[name]
        generator = np.random.default_rng(abs(hash(name)) % 2**32)
        bits = generator.integers(0, 2**16, int(np.prod(shape)), np.uint16)
        # Exponents of 2^-7 to 1; sign and mantissa at random.
        bits = (bits & 0x83FF) | 0x3C00
        return bits.view(ml_dtypes.bfloat16).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write(folder: Path) -> int:
    """Write the checkpoint; returns its bytes."""
    from worldstereo_jax.interop.official import official_shapes
    from worldstereo_jax.interop.safetensors_io import write_safetensors

    shapes = official_shapes(config())
    names = sorted(shapes)
    share = len(names) // SHARDS + 1
    weight_map = {}
    for shard in range(SHARDS):
        part = names[shard * share : (shard + 1) * share]
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        write_safetensors(folder / file, RandomTensors({name: shapes[name] for name in part}))
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def memory(field: str) -> int:
    """Bytes of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def load(folder: Path, kept: str) -> None:
    """Load the checkpoint and print a line of json."""
    import jax
    import numpy as np
    from jax.sharding import Mesh

    from worldstereo_jax.interop.official import model_places, parameter_shapes
    from worldstereo_jax.interop.streaming import stream_params
    from worldstereo_jax.interop.tensor_source import open_weights
    from worldstereo_jax.models.placement import one_device, split_widest_axis
    from worldstereo_jax.models.quantised import quantise_params, quantiser

    devices = jax.devices()
    placement = one_device
    if len(devices) > 1:
        placement = split_widest_axis(Mesh(np.array(devices), ("model",)), "model")
    places, shapes = model_places(config()), parameter_shapes(config())
    source = open_weights(folder)
    before, start = memory("VmRSS"), time.perf_counter()
    keep = quantiser(config(), "int8") if kept == "int8" else None
    params = stream_params([source], places, shapes, placement=placement, keep=keep).params
    if kept == "int8 afterwards":
        params = jax.block_until_ready(quantise_params(params, config(), "int8"))
    seconds = time.perf_counter() - start
    size = sum(
        shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards
    )
    largest = max(source.info(name).nbytes for name in source)
    print(
        json.dumps(
            {
                "devices": len(devices),
                "seconds": seconds,
                "params": size,
                "largest": largest,
                "overhead": memory("VmHWM") - before - size,
            }
        )
    )


def main() -> None:
    """Write, load in every way, record, delete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kept", default="bfloat16", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    options = parser.parse_args()
    if options.load:
        load(options.load, options.kept)
        return

    from worldstereo_jax.evaluation.report import Table, write_section

    folder = Path(tempfile.mkdtemp(prefix="streaming_memory."))
    rows = []
    try:
        size = write(folder)
        print(f"wrote {size / 1e9:.2f} GB", flush=True)
        for count, kept in CASES:
            flags = f"--xla_force_host_platform_device_count={count}"
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
            command = [sys.executable, __file__, "--load", str(folder), "--kept", kept]
            done = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(found, flush=True)
            rows.append(
                [
                    str(found["devices"]),
                    kept,
                    f"{size / 1e9:.2f}",
                    f"{found['params'] / 1e9:.2f}",
                    f"{found['largest'] / 1e9:.2f}",
                    f"{found['overhead'] / 1e9:.2f}",
                    f"{found['seconds']:.0f}",
                ]
            )
    finally:
        shutil.rmtree(folder)
    header = ["devices", "matrices in", "checkpoint GB", "parameters GB", "largest tensor GB",
              "host overhead GB", "seconds"]  # fmt: skip
    write_section(
        options.out,
        TITLE,
        [
            "Ten of the 14B memory model's forty layers with random bfloat16 values, four shards. "
            "Overhead: the process's peak less what it took before loading and less the "
            "parameters, which on a CPU lie in host memory too. Limit: 2 GB plus the largest "
            "tensor. int8: brought into 8 bits matrix by matrix as they are read; afterwards: when "
            "all are there. The machine was shared with other jobs, so the seconds are upper "
            "bounds.",
            Table(header, rows),
        ],
        command="python experiments/streaming_memory.py",
    )


if __name__ == "__main__":
    main()
