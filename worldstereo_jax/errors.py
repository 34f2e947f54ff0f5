"""The one exception for input that a person can mend, and what it says of unknown names."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: one sentence that names the file, field or argument and what was expected.

    The command line prints the sentence and exits with code 2; no traceback is shown.
    """


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """How a sentence about an unknown name ends: the nearest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}."


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence that rejects an unknown name and suggests the nearest known one."""
    return f"There is no {kind} called '{name}': {nearest_hint(name, known)}"
