import importlib
import inspect
import re

import pytest

from worldstereo_jax import memory

WHAT = (
    *("init", "update", "query", "correspond", "warp", "mask"),
    *("prune", "merge", "save", "load", "select", "undo"),
)


@pytest.mark.row("S33")
def test_every_function_of_the_memory_exists_and_is_listed_in_one_place():
    """What the package's docstring lists are functions, with docstrings of their own."""
    text = memory.__doc__
    for what in WHAT:
        assert re.search(rf"^    {what} ", text, re.MULTILINE), what
    listed = re.findall(r"\b([a-z_]+)\.([a-z_]+)\b", text)
    assert len(listed) > 25
    for module, name in listed:
        function = getattr(importlib.import_module(f"worldstereo_jax.memory.{module}"), name)
        assert callable(function)
        assert inspect.getdoc(function), name
