"""The encoders' and autoencoder's official names, by one pattern table each, both ways.

In our pattern `{i}` and `{j}` are numbers found in a path; the official pattern says where they
go. An `{i}` of the official pattern that ours lacks runs over the leading axis of a stack of
layers.
"""

import functools
import re
import typing
from collections.abc import Callable, Collection, Mapping

import jax
import numpy as np

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.interop.official import from_official, to_official
from worldstereo_jax.interop.official_names import Place, Rule

Shapes = Mapping[str, tuple[int, ...]]


class ComponentTable(typing.NamedTuple):
    """Places of a component's tensors in our tree, and the shapes there.

    Attributes:
        places: official name to place.
        shapes: our path to shape.
    """

    places: dict[str, Place]
    shapes: dict[str, tuple[int, ...]]

    def official_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that every official tensor must have, by name."""
        found = {}
        for name, place in self.places.items():
            shape = self.shapes[place.path]
            found[name] = place.layout.official_shape(shape if place.index is None else shape[1:])
        return found

    def params(
        self, tensors: Mapping[str, np.ndarray], *, source: str = "the given tensors"
    ) -> PyTree:
        """Our parameters from official tensors; see `official.from_official` for the errors."""
        return from_official(tensors, self.places, self.shapes, source=source)

    def tensors(self, params: PyTree) -> dict[str, np.ndarray]:
        """Our parameters under official names; the inverse of `params`."""
        return to_official(params, self.places)


def component_table(init: Callable[[], PyTree], rules: tuple[Rule, ...]) -> ComponentTable:
    """The table of a module from a function that makes its variables; nothing is allocated.

    Raises:
        KeyError: when a path of the module has no rule, or several.
    """
    tree = jax.eval_shape(init)["params"]
    shapes = {path: tuple(leaf.shape) for path, leaf in flat_paths(tree).items()}
    return ComponentTable(match_places(shapes, rules), shapes)


def match_places(shapes: Shapes, rules: Collection[Rule]) -> dict[str, Place]:
    """Every official name that belongs to a tree of these shapes, with its place there."""
    found: dict[str, Place] = {}
    for path, shape in shapes.items():
        matches = [
            (rule, numbers)
            for rule in rules
            if (numbers := _pattern(rule.ours).fullmatch(path)) is not None
        ]
        if len(matches) != 1:
            raise KeyError(f"{len(matches)} rules for {path}")
        rule, numbers = matches[0]
        known = numbers.groupdict()
        if "{i}" in rule.official and "i" not in known:
            for index in range(shape[0]):
                name = rule.official.format(i=index, **known)
                found[name] = Place(path, index, rule.layout)
        else:
            found[rule.official.format(**known)] = Place(path, None, rule.layout)
    return found


@functools.cache
def _pattern(ours: str) -> re.Pattern[str]:
    escaped = re.escape(ours)
    for name in ("i", "j"):
        escaped = escaped.replace(re.escape(f"{{{name}}}"), rf"(?P<{name}>\d+)")
    return re.compile(escaped)
