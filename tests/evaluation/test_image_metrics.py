import jax
import numpy as np
import pytest
from scipy import ndimage
from skimage.data import astronaut
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation import image_metrics
from worldstereo_jax.evaluation.image_metrics import MS_SSIM_WEIGHTS, ms_ssim_scales

# Each one program, not one of every operation.
psnr, ssim, ms_ssim, gmsd, masked_psnr, masked_ssim = (
    jax.jit(getattr(image_metrics, name))
    for name in ("psnr", "ssim", "ms_ssim", "gmsd", "masked_psnr", "masked_ssim")
)
PHOTO = astronaut()[:96, 150:310].astype(np.float32) / 127.5 - 1


def distort(kind, amount=0.2, image=PHOTO):
    noise = np.random.default_rng(0).normal(size=image.shape)
    if kind == "noise":
        return np.clip(image + amount * noise, -1, 1).astype(np.float32)
    if kind == "blur":
        return ndimage.gaussian_filter(image, (8 * amount, 8 * amount, 0)).astype(np.float32)
    return np.clip(image + amount, -1, 1).astype(np.float32)


def skimage_ssim(a, b, **options):
    return structural_similarity(
        a,
        b,
        data_range=2,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        **options,
    )


@pytest.mark.parametrize("kind", ["noise", "blur", "shift"])
def test_psnr_and_ssim_equal_scikit_image(kind):
    other = distort(kind)
    np.testing.assert_allclose(
        psnr(PHOTO, other), peak_signal_noise_ratio(PHOTO, other, data_range=2), rtol=1e-5
    )
    np.testing.assert_allclose(ssim(PHOTO, other), skimage_ssim(PHOTO, other), atol=2e-5)


def test_masked_measures_see_the_mask_only():
    mask = np.zeros(PHOTO.shape[:2], bool)
    mask[20:60, 30:90] = True
    other = distort("noise")
    expected = 10 * np.log10(4 / np.mean((PHOTO - other)[mask] ** 2))
    np.testing.assert_allclose(masked_psnr(PHOTO, other, mask), expected, rtol=1e-5)
    full = np.asarray(skimage_ssim(PHOTO, other, full=True)[1])
    np.testing.assert_allclose(
        masked_ssim(PHOTO, other, mask), full.mean(axis=-1)[mask].mean(), atol=2e-5
    )
    worse = np.where(mask[..., None], other, -other)
    np.testing.assert_allclose(masked_psnr(PHOTO, worse, mask), expected, rtol=1e-5)


def test_whole_mask_is_the_plain_measure_and_empty_is_nan():
    other, mask = distort("blur"), np.ones(PHOTO.shape[:2], bool)
    np.testing.assert_allclose(masked_psnr(PHOTO, other, mask), psnr(PHOTO, other), rtol=1e-6)
    np.testing.assert_allclose(masked_ssim(PHOTO, other, mask), ssim(PHOTO, other), rtol=1e-5)
    assert np.isnan(masked_psnr(PHOTO, other, ~mask))
    assert np.isnan(masked_ssim(PHOTO, other, ~mask))


def ms_ssim_by_scikit_image(a, b, scales):
    """Per channel; contrast terms from SSIM of the same images with their local means removed."""
    weights = np.array(MS_SSIM_WEIGHTS[:scales]) / sum(MS_SSIM_WEIGHTS[:scales])
    per_channel = []
    for c in range(3):
        x, y, value = a[..., c].astype(np.float64), b[..., c].astype(np.float64), 1.0
        for scale in range(scales):
            maps = structural_similarity(
                x,
                y,
                data_range=2,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                full=True,
            )[1]
            mean_x, mean_y = (ndimage.gaussian_filter(i, 1.5, truncate=3.5) for i in (x, y))
            c1 = 0.02**2
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            term = maps if scale == scales - 1 else maps / luminance
            value *= max(term[5:-5, 5:-5].mean(), 0) ** weights[scale]
            x, y = (
                i.reshape(i.shape[0] // 2, 2, i.shape[1] // 2, 2).mean(axis=(1, 3)) for i in (x, y)
            )
        per_channel.append(value)
    return np.mean(per_channel)


@pytest.mark.parametrize("kind", ["noise", "blur"])
def test_ms_ssim_equals_its_definition(kind):
    other = distort(kind)
    expected = ms_ssim_by_scikit_image(PHOTO, other, 4)
    np.testing.assert_allclose(ms_ssim(PHOTO, other), expected, atol=5e-5)


def test_ms_ssim_uses_the_scales_that_fit():
    assert ms_ssim_scales(96, 160) == 4
    assert ms_ssim_scales(176, 400) == 5
    assert ms_ssim_scales(1000, 1000) == 5
    assert ms_ssim_scales(12, 400) == 1
    small = PHOTO[:12, :40]
    other = distort("noise", image=small)
    np.testing.assert_allclose(ms_ssim(small, other), ssim(small, other), rtol=1e-5)
    with pytest.raises(InputError, match="11 pixels"):
        ssim(PHOTO[:10], PHOTO[:10])


def gmsd_by_scipy(a, b):
    magnitudes = []
    for image in (a, b):
        grey = ((image.astype(np.float64) + 1) * 127.5) @ [0.299, 0.587, 0.114]
        grey = grey.reshape(grey.shape[0] // 2, 2, grey.shape[1] // 2, 2).mean(axis=(1, 3))
        gradients = [ndimage.prewitt(grey, axis)[1:-1, 1:-1] / 3 for axis in (0, 1)]
        magnitudes.append(np.hypot(*gradients))
    g, h = magnitudes
    return np.std((2 * g * h + 170) / (g**2 + h**2 + 170))


@pytest.mark.parametrize("kind", ["noise", "blur", "shift"])
def test_gmsd_equals_its_definition(kind):
    other = distort(kind)
    np.testing.assert_allclose(gmsd(PHOTO, other), gmsd_by_scipy(PHOTO, other), atol=1e-5)


@pytest.mark.parametrize(("measure", "best"), [(ssim, 1.0), (ms_ssim, 1.0), (gmsd, 0.0)])
def test_equal_images_are_best_and_distortion_is_ordered(measure, best):
    np.testing.assert_allclose(measure(PHOTO, PHOTO), best, atol=1e-4)
    for kind in ("noise", "blur"):
        losses = [abs(float(measure(PHOTO, distort(kind, s))) - best) for s in (0.1, 0.2, 0.4)]
        assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim, gmsd])
def test_leading_axes_are_kept_under_jit(measure):
    clip = np.stack([PHOTO, PHOTO[:, ::-1]])[None]
    other = np.stack([distort("noise"), distort("blur")])[None]
    found = jax.jit(measure)(clip, other)
    assert found.shape == (1, 2)
    np.testing.assert_allclose(found[0, 1], measure(clip[0, 1], other[0, 1]), rtol=1e-4)
