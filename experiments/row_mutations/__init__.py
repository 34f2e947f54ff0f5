"""That the tests of every row of the memory's specification notice when its mechanism is disabled.

    python -m experiments.row_mutations            # all; about half an hour on one core
    python -m experiments.row_mutations S7 S24     # these rows

`mutation` says what a mutation is, `table` lists them all, `plugin` applies one within pytest.
"""
