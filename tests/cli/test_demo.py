import json

import pytest

from worldstereo_jax.cli.demo import TO_FIRST, TO_TRUTH, gain_table
from worldstereo_jax.cli.main import main
from worldstereo_jax.data import images, video_io
from worldstereo_jax.evaluation.memory_gain import BOTH, VARIANTS
from worldstereo_jax.memory.folder import load_memory
from worldstereo_jax.sampling.world import RolloutConfig


def test_the_table_tells_what_the_memories_gained():
    def row(to_first: float) -> dict[str, float]:
        return {TO_FIRST: to_first, TO_TRUTH: 20.0, "PSNR dB": 19.0, "SSIM": 0.5}

    values = dict(zip(VARIANTS, (27.25, 22.0, 17.0), strict=True))
    table = gain_table({variant: row(value) for variant, value in values.items()})
    lines = table.splitlines()
    for variant, value in values.items():
        (line,) = (line for line in lines if line.startswith(variant))
        assert line.split()[-4:] == [f"{value:.2f}", "20.00", "19.00", "0.500"]
    assert "gained 10.2 dB" in lines[-1]
    assert max(map(len, lines)) <= 100


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_demo_shows_that_the_memories_help(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "The memories gained" in printed
    for variant in VARIANTS:
        assert variant in printed
    record = json.loads((out / "run.json").read_text())
    gain = record["gain"]
    assert list(gain) == list(VARIANTS)
    for variant in list(VARIANTS)[1:]:
        for measure in (TO_FIRST, TO_TRUTH, "PSNR dB"):
            assert gain[BOTH][measure] > gain[variant][measure]
    config = RolloutConfig()
    for name in ("first", "revisit"):
        shape = (config.frames, config.height, config.width, 3)
        assert video_io.read_video(out / name / "video.mp4").shape == shape
        assert (out / name / "contact_sheet.png").is_file()
    assert min(images.read_image(out / "comparison.png").shape[:2]) > 500
    _, stereo = load_memory(out / "memory", model="tiny")
    assert int(stereo.count) == 1 + 2 * config.keyframes
    assert (out / "points.ply").is_file()
    assert (out / "surface.ply").is_file()
