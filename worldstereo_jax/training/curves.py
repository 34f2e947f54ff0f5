"""Training curves drawn from a run's log."""

import os

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write
from worldstereo_jax.training.loop import read_log


def draw_curves(
    log: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    names: tuple[str, ...] | None = None,
) -> None:
    """Draw each metric of a JSON-lines log over the steps, one panel each, into a PNG.

    `names` chooses and orders the panels; without it every metric but times is drawn.
    Raises InputError for a log without records or a name it does not hold.
    """
    records = read_log(log)
    if not records:
        raise InputError(f"{log}: the log holds no records yet")
    present = list(dict.fromkeys(name for record in records for name in record))
    chosen = names or tuple(n for n in present if n != "step" and "seconds" not in n)
    for name in chosen:
        if name not in present:
            raise InputError(f"{log}: the log holds no metric {name!r}")
    figure = Figure(figsize=(4 * min(3, len(chosen)), 2.6 * -(-len(chosen) // 3)))
    FigureCanvasAgg(figure)
    for index, name in enumerate(chosen):
        points = [(record["step"], record[name]) for record in records if name in record]
        axis = figure.add_subplot(-(-len(chosen) // 3), min(3, len(chosen)), index + 1)
        axis.plot(*zip(*points, strict=True), linewidth=1)
        if "loss" in name and all(value > 0 for _, value in points):
            axis.set_yscale("log")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
