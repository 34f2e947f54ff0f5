"""Plain Wan 2.1 models through the command, at toy size, in the official file layout."""

import json

import av
import numpy as np
import pytest

from tests import toy_official as toy
from worldstereo_jax.cli import video
from worldstereo_jax.cli.main import main
from worldstereo_jax.data import images, video_io
from worldstereo_jax.errors import InputError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of text and one of an image."""
    folder = tmp_path_factory.mktemp("models")
    toy.write_plain(folder / "t2v", image=False)
    toy.write_plain(folder / "i2v", image=True)
    return folder


@pytest.fixture
def asked(monkeypatch):
    """A function that gives what would be made of a command, before anything is loaded."""
    found = []

    def stop(files, texts, **_):
        raise InputError("stopped")

    def keep(*arguments, **options):
        found.append(make(*arguments, **options))
        return found[-1]

    make = video.video_world
    monkeypatch.setattr(video, "video_world", keep)
    monkeypatch.setattr(video, "check_model_room", stop)

    def ask(*arguments):
        assert main(["video", *map(str, arguments), "--prompt", "x", "--out", "never"]) == 2
        return found.pop()

    return ask


@pytest.mark.slow
def test_text_becomes_a_video_and_a_record(models, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("video", "--model", models / "t2v", "--prompt", "a boat", "--size", "32x48",
             "--frames", 5, "--steps", 2, "--shift", 5, "--dtype", "float32", "--fps", 8,
             "--text-cache", tmp_path / "text", "--vae-tile", 4)  # fmt: skip
    arguments = [str(argument) for argument in (*given, "--out", out)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(out / "video.mp4")
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "video.mp4"]
    first = video_io.read_video(out / "video.mp4")
    assert first.shape == (5, 32, 48, 3)
    assert first.std() > 0.1
    with av.open(str(out / "video.mp4")) as container:
        assert container.streams.video[0].average_rate == 8
    record = json.loads((out / "run.json").read_text())
    assert record["choices"]["timesteps"] == [999.0, 833.0]
    assert record["choices"]["guidance_scale"] == 5.0
    assert len(list((tmp_path / "text").iterdir())) == 2
    # The same seed gives the same video, another one another.
    assert main([*arguments, "--overwrite"]) == 0
    np.testing.assert_array_equal(video_io.read_video(out / "video.mp4"), first)
    assert main([*arguments, "--overwrite", "--seed", "1"]) == 0
    assert np.abs(video_io.read_video(out / "video.mp4") - first).max() > 0.1


@pytest.mark.slow
def test_a_picture_is_where_a_video_starts(models, picture, tmp_path):
    given = ("video", "--model", models / "i2v", "--prompt", "waves", "--size", "32x48",
             "--frames", 5, "--steps", 1, "--guidance-scale", 1, "--dtype", "float32")  # fmt: skip
    negative = tmp_path / "negative.png"
    images.write_image(negative, -images.read_image(picture))
    found = []
    for number, file in enumerate((picture, negative)):
        out = tmp_path / str(number)
        given_here = (*given, "--image", file, "--out", out)
        assert main([str(argument) for argument in given_here]) == 0
        found.append(video_io.read_video(out / "video.mp4"))
    assert found[0].shape == (5, 32, 48, 3)
    assert np.abs(found[0] - found[1]).max() > 0.05
    assert json.loads((out / "run.json").read_text())["choices"]["guidance"] == "none"


def test_sizes_and_choices(models, picture, asked):
    plain = asked("--model", models / "t2v")
    assert (plain.frames, plain.height, plain.width) == (81, 480, 832)
    assert plain.choices.schedule.steps == 50
    assert not plain.takes_image
    # 120 x 72 pixels: of the usual area, in its proportions.
    started = asked("--model", models / "i2v", "--image", picture, "--cfg", "two-pass")
    assert (started.height, started.width) == (480, 816)
    assert started.choices.guidance == "two-pass"
    shifted = asked("--model", models / "t2v", "--shift", 8, "--steps", 3)
    assert (shifted.choices.schedule.timesteps > plain.choices.schedule.timesteps[-1]).all()


def test_what_does_not_fit_is_refused_in_a_sentence(models, picture, tmp_path, refused):
    out = ("--prompt", "x", "--out", tmp_path / "out")
    text, image = ("--model", models / "t2v"), ("--model", models / "i2v")
    index = tmp_path / "later/model_index.json"
    toy.write_json(index, {"boundary_ratio": 0.9})
    controlled = toy.write_checkpoint(tmp_path / "ws", toy.official_tensors(), **toy.DMD)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "transformer").symlink_to(models / "t2v/transformer")
    for arguments, said in (
        ((*text, "--frames", 6), "clips of 6 frames, expected 1 + a multiple of 4"),
        ((*text, "--size", "40x64"), "40 x 64 pixels, expected multiples of 16"),
        ((*text, "--image", picture), "t2v is a text-to-video model, which takes no --image"),
        (image, "i2v is an image-to-video model: give the first --image"),
        ((*text, "--lora-scale", 0.5), "--lora-scale is for --lora"),
        ((*text, "--guidance-scale", 1, "--cfg", "batched"), "--cfg has no use"),
        ((*text, "--devices", 99), "--devices is 99"),
        ((*text, "--shift", 0), "shift must be positive"),
        (("--model", controlled), "worldstereo generate runs it"),
        (("--model", bare), "has no folder vae; name the base model that has it"),
        (("--model", index.parent), "boundary_ratio is 0.9: a Wan 2.2 pipeline"),
    ):
        assert said in refused("video", *arguments, *out)
    assert "--prompt is empty" in refused("video", *text, "--prompt", " ", "--out", "never")
    assert not (tmp_path / "out").exists()
