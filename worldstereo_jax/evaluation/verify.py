"""A folder of recorded official outputs against ours, file by file.

The format: `NAME_io.npz` holds a network's inputs and outputs and `NAME.safetensors` its weights
under official names; an `_io` file without weights of its own takes those, and the inputs that it
lacks, of the file whose name it extends. Other npz files hold sampling loops (of `memory_model`),
cameras, retrieval and unprojection. Which kind a file is shows in its arrays, not its name. All
sizes are read from the files.
"""

import dataclasses
import math
import os
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation import golden_geometry, golden_models, golden_sampling
from worldstereo_jax.evaluation.golden_arrays import GoldenArrays
from worldstereo_jax.evaluation.golden_models import Errors
from worldstereo_jax.interop.safetensors_io import SafetensorsFile

TOLERANCE = 1e-4
SAMPLED_MODEL = "memory_model"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of one file.

    Attributes:
        name: the file's name.
        errors: relative error of every output compared, by name; empty if nothing was.
        fault: why the file was not (or not wholly) compared, None when it was.
    """

    name: str
    errors: Errors
    fault: str | None = None

    @property
    def worst(self) -> float:
        """The largest error, inf when nothing was compared."""
        return max(self.errors.values(), default=math.inf)

    def passed(self, tolerance: float = TOLERANCE) -> bool:
        """Whether everything in the file was compared and is within the tolerance."""
        return self.fault is None and self.worst <= tolerance

    def line(self, tolerance: float = TOLERANCE) -> str:
        """One line: name, largest error and which output it is of, verdict."""
        if self.fault is not None:
            return f"{self.name:<36} skipped: {self.fault}"
        output = max(self.errors, key=lambda name: self.errors[name])
        verdict = "ok" if self.passed(tolerance) else f"OFF (allowed {tolerance:.0e})"
        return f"{self.name:<36} max error {self.worst:.2e} ({output})  {verdict}"


def golden_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Files of the format in a folder, by name.

    Raises:
        InputError: when there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return sorted(path for path in folder.iterdir() if path.suffix in (".npz", ".safetensors"))


def verify_folder(folder: str | os.PathLike[str]) -> Iterator[Verdict]:
    """The verdict on every file of a folder, in the order of their names, as each is reached.

    Raises:
        InputError: when there is no such folder.
    """
    for path in golden_files(folder):
        yield verify_file(path)


def verify_file(path: str | os.PathLike[str]) -> Verdict:
    """Compare one file, with its neighbours in the folder where it needs them."""
    path = Path(path)
    try:
        # Accelerators multiply float32 in fewer bits unless told otherwise.
        with jax.default_matmul_precision("highest"):
            if path.suffix == ".safetensors":
                return _verify_weights(path)
            return _verify_arrays(path)
    except InputError as error:
        return Verdict(path.name, {}, " ".join(str(error).split()))


def _verify_arrays(path: Path) -> Verdict:
    if path.name.endswith("_io.npz"):
        weights = _weights_of(path)
        base = path.with_name(f"{weights.path.stem}_io.npz")
        arrays = GoldenArrays(path, base if base != path else None)
        kind = _network_kind(arrays)
        errors = kind.check(kind.load(weights, arrays), arrays)
    else:
        arrays = GoldenArrays(path)
        errors = _verify_computation(path, arrays)
    if unused := arrays.unused():
        return Verdict(path.name, {}, f"{path}: nothing compares its array {unused[0]}")
    return Verdict(path.name, errors)


class _Kind(typing.NamedTuple):
    load: Callable[[SafetensorsFile, GoldenArrays], golden_models.Network]
    check: Callable[[golden_models.Network, GoldenArrays], Errors]


_KINDS = {
    "out_sample": _Kind(golden_models.load_model, golden_models.check_model),
    "out_tokens": _Kind(golden_models.load_mask_embedding, golden_models.check_mask_embedding),
    "out_target": _Kind(golden_models.load_stereo_block, golden_models.check_stereo_block),
}


def _network_kind(arrays: GoldenArrays) -> _Kind:
    for output, kind in _KINDS.items():
        if output in arrays:
            return kind
    raise InputError(f"{arrays.path}: holds no output of a known network")


def _verify_computation(path: Path, arrays: GoldenArrays) -> Errors:
    if "lat0" in arrays:
        weights = SafetensorsFile(path.with_name(f"{SAMPLED_MODEL}.safetensors"))
        model_arrays = GoldenArrays(path.with_name(f"{SAMPLED_MODEL}_io.npz"))
        guided = "neg" in arrays
        check = golden_sampling.check_unipc if guided else golden_sampling.check_dmd
        return check(weights, model_arrays, arrays)
    for array, compare in (
        ("plucker", golden_geometry.check_cameras),
        ("overlap", golden_geometry.check_retrieval),
        ("invalid_mask", golden_geometry.check_unprojection),
    ):
        if array in arrays:
            return compare(arrays)
    raise InputError(f"{path}: its arrays are of no known kind")


def _weights_of(path: Path) -> SafetensorsFile:
    """Weights of NAME_io.npz: NAME.safetensors, or those of the longest NAME that it extends."""
    words = path.name.removesuffix("_io.npz").split("_")
    for count in range(len(words), 0, -1):
        candidate = path.with_name("_".join(words[:count]) + ".safetensors")
        if candidate.is_file():
            return SafetensorsFile(candidate)
    raise InputError(f"{path}: no weights file {'_'.join(words)}.safetensors beside it")


def _verify_weights(path: Path) -> Verdict:
    """Whether all tensors have a place with us and come back from there bit for bit."""
    beside = path.with_name(f"{path.stem}_io.npz")
    if not beside.is_file():
        raise InputError(f"{path}: no {beside.name} beside it, so nothing shows what it computes")
    weights, arrays = SafetensorsFile(path), GoldenArrays(beside)
    network = _network_kind(arrays).load(weights, arrays)
    return Verdict(path.name, golden_models.check_weights(network, weights))
