"""Training on the devices of a mesh, of one host or of many: what lies where.

| mesh axis | what it splits |
| --- | --- |
| data | the samples of a batch |
| fsdp | the samples too, and every large parameter with all that the optimiser keeps of it |
| model | heads and hidden channels, as in sampling; between layers, the tokens of a sample |

Parameters are fetched along "fsdp" layer by layer (ZeRO stage 3, Rajbhandari et al. 2020); along
"model" a layer's activations are joined for its attention and feed-forward part and split again
behind them (Shoeybi et al. 2019, "Megatron-LM"; Korthikanti et al. 2022, "Reducing activation
recomputation in large transformer models"). So the batch is a whole multiple of data x fsdp, and
the fast links belong to "model", then to "fsdp"; "data" may run over slow ones.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels import AttentionSharding
from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.placement import (
    axis_size,
    fully_sharded,
    lay_out,
    tensor_parallel,
)
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.training.state import TrainState, init_train_state

DATA, FSDP, MODEL = "data", "fsdp", "model"
AXES = (DATA, FSDP, MODEL)
SAMPLES = (DATA, FSDP)
"""Mesh axes over the samples of a batch."""
Tree = typing.TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class TrainLayout:
    """How a training run lies on a mesh with the axes data, fsdp and model.

    Attributes:
        mesh: all devices of all hosts.
        smallest: arrays of fewer elements a layer are not split over "fsdp": to fetch them would
            take longer than they are worth.

    Raises:
        InputError: for a mesh with other axes.
    """

    mesh: Mesh
    smallest: int = 1 << 14

    def __post_init__(self) -> None:
        if tuple(self.mesh.axis_names) != AXES:
            raise InputError(f"mesh has axes {self.mesh.axis_names}, expected {AXES}")

    def model(self, config: ModelConfig) -> WorldStereo:
        """The transformer whose attention and streams are split over the mesh.

        Raises:
            InputError: when the axis "model" does not divide the heads of both branches.
        """
        parts = self.mesh.shape[MODEL]
        heads = [config.num_heads, *([config.control.num_heads] if config.control else [])]
        if any(count % parts for count in heads):
            raise InputError(
                f"mesh: model={parts} does not divide the {' and '.join(map(str, heads))} heads of "
                "the transformer and its control branch"
            )
        attention = AttentionSharding(self.mesh, heads=MODEL, batch=SAMPLES)
        stream = NamedSharding(self.mesh, PartitionSpec(SAMPLES, MODEL, None))
        return WorldStereo(config, attention, stream)

    def place_parameter(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Where a parameter lies, from its path and shape: a `Placement`."""
        place = fully_sharded(self.mesh, FSDP, tensor_parallel(self.mesh, MODEL), self.smallest)
        return typing.cast(NamedSharding, place(path, shape))

    @property
    def whole(self) -> NamedSharding:
        """Where small things lie: on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def parameters(self, params: PyTree) -> PyTree:
        """Where each array of a tree of parameters lies; arrays or their shapes."""

        def place(path: typing.Any, leaf: typing.Any) -> NamedSharding:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            return self.place_parameter(name, leaf.shape)

        return jax.tree_util.tree_map_with_path(place, params)

    def state(self, state: TrainState) -> TrainState:
        """Where each array of a training state lies; arrays or their shapes. See `kept`."""
        return self.kept(state, state.params)

    def kept(self, state: Tree, params: PyTree) -> Tree:
        """Where each array lies of what a run keeps; arrays or their shapes.

        What is kept in the form of a parameter, under the same path and of the same shape, as
        optimisers do, lies where the parameter lies; all else is on every device.

        Args:
            state: any tree.
            params: the parameters.
        """
        places = {
            tuple(path): (leaf.shape, self.place_parameter(
                jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape
            ))
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }  # fmt: skip

        def place(path: typing.Any, leaf: typing.Any) -> NamedSharding:
            for start in range(len(path)):
                shape, found = places.get(tuple(path[start:]), (None, self.whole))
                if shape == leaf.shape:
                    return found
            return self.whole

        # Over the whole state: a parameter's own path in it ends in the parameter's path as well.
        return jax.tree_util.tree_map_with_path(place, state)

    def init_state(
        self,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        key: jax.Array,
        *,
        with_ema: bool = True,
    ) -> TrainState:
        """`init_train_state` with every array made where it lies.

        Args:
            params: the parameters, where they belong on the mesh (as a loader with
                `place_parameter` puts them), or the same on every host.
            optimizer: keeps what it keeps.
            key: typed random key of the run.
            with_ema: keep a running average.
        """

        def init(params: PyTree, key: jax.Array) -> TrainState:
            return init_train_state(params, optimizer, key, with_ema=with_ema)

        return self.init(init, params, key)

    def init(
        self, make: Callable[[PyTree, jax.Array], Tree], params: PyTree, key: jax.Array
    ) -> Tree:
        """`make(params, key)`, every array made where it lies; see `kept`.

        Args as in `init_state`.
        """
        # A typed key cannot be laid over the devices of other hosts, its words can.
        kind, words = jax.random.key_impl(key), np.asarray(jax.random.key_data(key))

        def made(params: PyTree, words: jax.Array) -> Tree:
            return make(params, jax.random.wrap_key_data(words, impl=kind))

        places = self.kept(jax.eval_shape(made, params, words), params)
        placed = jax.tree.map(_lay_out, params, self.parameters(params))
        return jax.jit(made, out_shardings=places)(placed, _lay_out(words, self.whole))

    def rows(self, batch: int) -> tuple[int, ...]:
        """Which samples of a global batch this host's devices hold, in rising order.

        Raises:
            InputError: when the batch does not divide over the devices.
        """
        parts = axis_size(self.mesh, SAMPLES)
        if batch % parts:
            raise InputError(
                f"batch of {batch} samples, expected a multiple of {parts} (data x fsdp)"
            )
        held = self._batch_sharding.addressable_devices_indices_map((batch,))
        samples = {row for index in held.values() if index for row in range(batch)[index[0]]}
        return tuple(sorted(samples))

    def batch(self, local: PyTree) -> PyTree:
        """A global batch from this host's `rows` of it, split over data and fsdp.

        Args:
            local: arrays with a leading axis of samples.
        """
        parts = axis_size(self.mesh, SAMPLES)
        shares = len(self.rows(parts))

        def place(x: typing.Any) -> jax.Array:
            x = np.asarray(x)
            batch = len(x) * parts // shares
            at = {row: number for number, row in enumerate(self.rows(batch))}

            def share(index: typing.Any) -> np.ndarray:
                return x[[at[row] for row in range(batch)[index[0]]]]

            return jax.make_array_from_callback((batch, *x.shape[1:]), self._batch_sharding, share)

        return jax.tree.map(place, local)

    def gather(self, tree: PyTree) -> PyTree:
        """Arrays that lie on the mesh as arrays of this host, each whole; all hosts call it."""

        # An array at a time, for all whole may be too much; those of a shape share a program.
        spread = jax.jit(lambda x: x, out_shardings=self.whole)

        def fetch(x: jax.Array) -> np.ndarray:
            return np.asarray(spread(x).addressable_data(0))

        return jax.tree.map(fetch, tree)

    @property
    def _batch_sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(SAMPLES))


def _lay_out(x: typing.Any, sharding: NamedSharding) -> jax.Array:
    """An array that every host has as one that lies on all their devices."""
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    return lay_out(np.asarray(x), sharding)


def join_hosts(given: Sequence[str]) -> None:
    """Make this process one of several hosts, before jax is asked for any device.

    Args:
        given: address of the first host with a port, number of hosts, number of this one; or
            nothing, where jax finds them out (on a TPU pod, under Slurm or Open MPI).

    Raises:
        InputError: for anything else.
    """
    if not given:
        jax.distributed.initialize()
        return
    if len(given) != 3 or not (given[1].isdecimal() and given[2].isdecimal()):
        raise InputError(
            f"--distributed is {' '.join(given)!r}, expected nothing, or the first host's "
            "address:port, the number of hosts, and this one's number from 0 on"
        )
    jax.distributed.initialize(given[0], int(given[1]), int(given[2]))


def open_layout(mesh: str | None) -> TrainLayout | None:
    """The layout on a described mesh of all devices; None for one device.

    Raises:
        InputError: as `parse_mesh`, or when there are several hosts and no mesh.
    """
    if mesh is not None:
        return TrainLayout(parse_mesh(mesh))
    if jax.process_count() > 1:
        raise InputError(
            f"--mesh is missing: each of {jax.process_count()} hosts would train for itself; "
            "--mesh fsdp=-1 is one run on all devices"
        )
    return None


def parse_mesh(text: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh from its description, such as "data=2,fsdp=-1,model=4".

    Args:
        text: sizes of the axes that are not 1; one may be -1, for what the devices leave.
        devices: to use, all of them; by default all that there are.

    Raises:
        InputError: for an unknown axis, a size that is no number, or sizes that do not use the
            devices up.
    """
    count = len(jax.devices() if devices is None else devices)
    sizes = dict.fromkeys(AXES, 1)
    given: set[str] = set()
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in AXES or name in given:
            raise InputError(f"mesh is {text!r}, expected each of {', '.join(AXES)} once at most")
        given.add(name)
        if not value.lstrip("-").isdecimal() or (int(value) < 1 and int(value) != -1):
            raise InputError(f"mesh is {text!r}: {name} is {value!r}, expected a number or -1")
        sizes[name] = int(value)
    if list(sizes.values()).count(-1) > 1:
        raise InputError(f"mesh is {text!r}, expected -1 once at most")
    known = math.prod(size for size in sizes.values() if size > 0)
    shape = [count // known if size == -1 else size for size in sizes.values()]
    if math.prod(shape) != count:
        raise InputError(f"mesh is {text!r}, expected it to use the {count} devices up")
    chosen = jax.devices() if devices is None else devices
    slices = len({getattr(device, "slice_index", 0) for device in chosen})
    if shape[0] % slices:
        raise InputError(
            f"mesh is {text!r}: data={shape[0]}, expected a multiple of the {slices} slices, "
            "between which the links are slow"
        )
    within = (shape[0] // slices, *shape[1:])
    if slices == 1:
        # A torus of 4 x 4 x 4 chips has no axis of 8 without.
        array = create_device_mesh(within, chosen, allow_split_physical_axes=True)
    else:
        array = create_hybrid_device_mesh(
            within, (slices, 1, 1), chosen, allow_split_physical_axes=True
        )
    return Mesh(array, AXES)
