"""All mutations: every row of the memory's specification has at least one."""

from experiments.row_mutations.attention import ATTENTION
from experiments.row_mutations.mutation import Mutation
from experiments.row_mutations.preserved import PRESERVED
from experiments.row_mutations.stored import STORED
from experiments.row_mutations.upkeep import UPKEEP

MUTATIONS: tuple[Mutation, ...] = (*STORED, *ATTENTION, *PRESERVED, *UPKEEP)
"""In the order of their rows."""


def mutations_by_name() -> dict[str, Mutation]:
    """The mutations by `Mutation.name`, of which no two are the same."""
    found = {mutation.name: mutation for mutation in MUTATIONS}
    if len(found) != len(MUTATIONS):
        raise ValueError("two mutations have the same name")
    return found
