import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import ndimage
from skimage.data import astronaut

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation import lpips as module
from worldstereo_jax.evaluation.lpips import load_lpips

# One program, not one of every operation.
lpips = jax.jit(module.lpips)
SHAPES = {
    "net.slice1.0": (64, 3, 11),
    "net.slice2.3": (192, 64, 5),
    "net.slice3.6": (384, 192, 3),
    "net.slice4.8": (256, 384, 3),
    "net.slice5.10": (256, 256, 3),
}
PHOTO = astronaut()[:32, 150:200].astype(np.float32) / 127.5 - 1


def random_tensors():
    rng = np.random.default_rng(0)
    tensors = {}
    for i, (name, (out, inner, size)) in enumerate(SHAPES.items()):
        kernel = rng.normal(size=(out, inner, size, size)) / np.sqrt(inner * size**2)
        tensors[f"{name}.weight"] = kernel.astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(size=out).astype(np.float32) * 0.1
        tensors[f"lin{i}.model.1.weight"] = rng.random((1, out, 1, 1)).astype(np.float32)
    return tensors


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(tensors, path)
    return load_lpips(path)


def window_features(tensors, image):
    """The five layers by sliding windows and scipy's maximum filter, float64."""
    x = np.moveaxis(image.astype(np.float64), -1, 0)
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x = (x - shift[:, None, None]) / scale[:, None, None]
    for i, (name, (_, _, size)) in enumerate(SHAPES.items()):
        if i in (1, 2):
            x = ndimage.maximum_filter(x, (1, 3, 3))[:, 1:-1:2, 1:-1:2]
        pad = {11: 2, 5: 2, 3: 1}[size]
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        kernel = tensors[f"{name}.weight"].astype(np.float64)
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
        windows = windows[:, ::4, ::4] if i == 0 else windows
        x = np.tensordot(kernel, windows, axes=([1, 2, 3], [0, 3, 4]))
        x = np.maximum(x + tensors[f"{name}.bias"][:, None, None], 0)
        yield x


def test_equals_its_definition(tensors, weights):
    other = np.clip(PHOTO + 0.2 * np.random.default_rng(1).normal(size=PHOTO.shape), -1, 1)
    other = other.astype(np.float32)
    expected = 0.0
    pairs = zip(window_features(tensors, PHOTO), window_features(tensors, other), strict=True)
    for i, (x, y) in enumerate(pairs):
        x, y = (f / (np.linalg.norm(f, axis=0, keepdims=True) + 1e-10) for f in (x, y))
        channel = tensors[f"lin{i}.model.1.weight"].reshape(-1, 1, 1)
        expected += np.mean(np.sum(channel * (x - y) ** 2, axis=0))
    np.testing.assert_allclose(lpips(weights, PHOTO, other), expected, rtol=1e-3)


def test_equal_images_and_leading_axes(weights):
    clip = np.stack([PHOTO, PHOTO[::-1]])
    found = lpips(weights, clip, np.stack([PHOTO, PHOTO]))
    assert found.shape == (2,)
    assert found[0] == 0
    assert found[1] > 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lin3.model.1.weight"), "lin3.model.1.weight is missing"),
        (lambda t: t.update({"net.slice2.3.bias": np.zeros(3, np.float32)}), "has shape"),
    ],
)
def test_bad_weights_are_named(tensors, tmp_path, change, message):
    broken = dict(tensors)
    change(broken)
    save_file(broken, tmp_path / "alex.safetensors")
    with pytest.raises(InputError, match=message):
        load_lpips(tmp_path / "alex.safetensors")


def test_missing_file_and_small_images_are_named(weights, tmp_path):
    with pytest.raises(InputError, match="nothing"):
        load_lpips(tmp_path / "nothing.safetensors")
    with pytest.raises(InputError, match="31 pixels"):
        lpips(weights, PHOTO[:30], PHOTO[:30])
