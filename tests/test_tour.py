"""The notebook runs, cell by cell, and what it tells of itself holds."""

import json
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "experiments" / "tour.ipynb"


def _code_cells():
    return [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


def test_the_notebook_is_kept_as_it_ran_without_errors_and_small():
    counts = [cell["execution_count"] for cell in _code_cells()]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in _code_cells() for output in cell["outputs"]]
    assert not any(output["output_type"] == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 5
    assert NOTEBOOK.stat().st_size < 3e6


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_what_the_notebook_tells_holds_when_it_runs(monkeypatch):
    drawn = []
    monkeypatch.setattr(plt, "show", lambda: (drawn.append(plt.gcf()), plt.close()))
    names = {"__name__": "__main__"}
    for cell in _code_cells():
        exec("".join(cell["source"]), names)
    assert len(drawn) == sum(
        "image/png" in output.get("data", {})
        for cell in _code_cells()
        for output in cell["outputs"]
    )
    truth, psnr = names["room"]["revisit_image"], names["psnr"]
    five, one = (psnr(names[n].video, truth)[1:].mean() for n in ("clip", "from_one"))
    assert five > one + 5
    assert all(jax.tree.leaves(names["same"]))
    assert 0.0 < names["allowed"].mean() < 0.2
    as_usual, alone = (
        told.warped_mask.mean() for told in (names["clip"].guidance, names["guidance"])
    )
    assert as_usual < alone
    assert names["distances"][-1] < 0.05 * names["distances"][0]
