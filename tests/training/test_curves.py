import json

import numpy as np
import pytest
from PIL import Image

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.curves import draw_curves


def _log(path, values):
    lines = [
        json.dumps({"step": i, "loss": v, "seconds_per_step": 1.0} | ({"psnr": v} if i % 2 else {}))
        for i, v in enumerate(values)
    ]
    path.write_text("\n".join(lines) + "\n")


def test_curves_show_the_values(tmp_path):
    for name, values in (("a", [3.0, 2.0, 1.0]), ("b", [1.0, 2.0, 3.0])):
        _log(tmp_path / f"{name}.jsonl", values)
        draw_curves(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.png")
    a, b = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in "ab")
    assert a.shape == b.shape
    assert min(a.shape[:2]) > 100
    assert (a != b).any()


def test_chosen_metrics_only(tmp_path):
    _log(tmp_path / "log.jsonl", [3.0, 2.0, 1.0])
    draw_curves(tmp_path / "log.jsonl", tmp_path / "one.png", names=("psnr",))
    draw_curves(tmp_path / "log.jsonl", tmp_path / "two.png")
    one, two = (Image.open(tmp_path / f"{n}.png").width for n in ("one", "two"))
    assert one < two
    with pytest.raises(InputError, match="fid"):
        draw_curves(tmp_path / "log.jsonl", tmp_path / "x.png", names=("fid",))


def test_empty_log_is_refused(tmp_path):
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(InputError, match="no records"):
        draw_curves(tmp_path / "log.jsonl", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
