"""Full-reference image measures, jit-able, one value per image.

Images are float32 [*batch, h, w, 3], RGB in [-1, 1], so the data range is 2; any leading axes
(frames, scenes) are kept. Masks are bool [*batch, h, w], true where a pixel counts; a masked
measure over no pixel is NaN, never a made-up number.
"""

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.errors import InputError

DATA_RANGE = 2.0
WINDOW, SIGMA = 11, 1.5
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
GMSD_CONSTANT = 170.0

Images = Float[Array | ndarray, "*batch h w c"]


def psnr(a: Images, b: Images) -> Float[Array, "*batch"]:
    """Return the peak signal-to-noise ratio in dB, 10 log10(4 / mean squared error)."""
    return _decibel(jnp.mean(jnp.square(_float(a) - _float(b)), axis=(-3, -2, -1)))


def masked_psnr(
    a: Images, b: Images, mask: Bool[Array | ndarray, "*batch h w"]
) -> Float[Array, "*batch"]:
    """Return PSNR in dB over the pixels of `mask`; NaN where it is empty."""
    error = jnp.mean(jnp.square(_float(a) - _float(b)), axis=-1)
    return _decibel(_masked_mean(error, mask))


def clip_psnr(
    video: Float[Array | ndarray, "f h w 3"],
    truth: Float[Array | ndarray, "f h w 3"],
    mask: Bool[Array | ndarray, "f h w"],
) -> Float[Array, ""]:
    """`masked_psnr` over all frames after the first, which is given, together."""
    rows = (video.shape[0] - 1) * video.shape[1]
    a, b = (x[1:].reshape(rows, -1, 3) for x in (video, truth))
    return masked_psnr(a, b, mask[1:].reshape(rows, -1))


def ssim(a: Images, b: Images) -> Float[Array, "*batch"]:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11, sigma 1.5, K = .01, .03.

    Mean over the windows that lie within the image and over channels; population covariance.
    Raises InputError when the image is smaller than the window.
    """
    luminance, contrast = _ssim_maps(_float(a), _float(b))
    return jnp.mean(luminance * contrast, axis=(-3, -2, -1))


def masked_ssim(
    a: Images, b: Images, mask: Bool[Array | ndarray, "*batch h w"]
) -> Float[Array, "*batch"]:
    """Return SSIM over the windows whose centre pixel is in `mask`; NaN where there is none.

    A window reaches 5 pixels beyond its centre, so pixels outside the mask still weigh a little.
    """
    luminance, contrast = _ssim_maps(_float(a), _float(b))
    edge = WINDOW // 2
    inner = jnp.asarray(mask)[..., edge:-edge, edge:-edge]
    return _masked_mean(jnp.mean(luminance * contrast, axis=-1), inner)


def ms_ssim(a: Images, b: Images) -> Float[Array, "*batch"]:
    """Multi-scale SSIM (Wang et al. 2003), with as many of its five scales as the image holds.

    Each scale halves the image by 2x2 means; a scale counts while the window of 11 fits (the
    published five need 176 pixels on the shorter side, 96 x 160 gives four), and the published
    weights of the scales used are renormalised to sum to 1. Values at different numbers of scales
    are not comparable. Contrast terms below 0 count as 0. Channels are averaged at the end.
    Raises InputError when the image is smaller than the window.
    """
    a, b = _float(a), _float(b)
    scales = ms_ssim_scales(a.shape[-3], a.shape[-2])
    total = sum(MS_SSIM_WEIGHTS[:scales])
    value = jnp.ones((), jnp.float32)
    for scale in range(scales):
        luminance, contrast = _ssim_maps(a, b)
        term = luminance * contrast if scale == scales - 1 else contrast
        term = jnp.maximum(jnp.mean(term, axis=(-3, -2)), 0)
        value = value * term ** (MS_SSIM_WEIGHTS[scale] / total)
        a, b = _halve(a), _halve(b)
    return jnp.mean(value, axis=-1)


def ms_ssim_scales(height: int, width: int) -> int:
    """Return how many of the five scales of MS-SSIM an image of height x width pixels holds.

    Raises InputError when it is smaller than the window.
    """
    scales = sum(min(height, width) >> scale >= WINDOW for scale in range(len(MS_SSIM_WEIGHTS)))
    if scales == 0:
        raise InputError(f"images must be at least {WINDOW} pixels each way, not {height}x{width}")
    return scales


def gmsd(a: Images, b: Images) -> Float[Array, "*batch"]:
    """Gradient magnitude similarity deviation (Xue et al. 2014); 0 is equal, greater is worse.

    Grey levels on 0..255 are halved by 2x2 means; Prewitt gradients divided by 3; similarity
    (2 g h + 170) / (g^2 + h^2 + 170); its standard deviation over the pixels whose 3x3
    neighbourhood lies within the image (the paper leaves the border open).
    """
    g, h = _gradient(_halve(_grey(a))), _gradient(_halve(_grey(b)))
    similarity = (2 * g * h + GMSD_CONSTANT) / (g**2 + h**2 + GMSD_CONSTANT)
    return jnp.std(similarity, axis=(-3, -2, -1))


def _float(image: Images) -> Float[Array, "*batch h w c"]:
    return jnp.asarray(image, jnp.float32)


def _decibel(mean_square: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    return 10 * jnp.log10(DATA_RANGE**2 / mean_square)


def _masked_mean(
    value: Float[Array, "*batch h w"], mask: Bool[Array | ndarray, "*batch h w"]
) -> Float[Array, "*batch"]:
    weight = jnp.asarray(mask, jnp.float32)
    return jnp.sum(jnp.where(mask, value, 0), axis=(-2, -1)) / jnp.sum(weight, axis=(-2, -1))


def _halve(image: Float[Array, "*batch h w c"]) -> Float[Array, "*batch h2 w2 c"]:
    """2x2 means; an odd last row or column is dropped."""
    *batch, height, width, channels = image.shape
    image = image[..., : height // 2 * 2, : width // 2 * 2, :]
    blocks = image.reshape(*batch, height // 2, 2, width // 2, 2, channels)
    return blocks.mean(axis=(-4, -2))


def _grey(image: Images) -> Float[Array, "*batch h w 1"]:
    """BT.601 luma on 0..255."""
    red, green, blue = jnp.split((_float(image) + 1) * 127.5, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _gradient(grey: Float[Array, "*batch h w 1"]) -> Float[Array, "*batch h2 w2 1"]:
    """Prewitt gradient magnitude (divided by 3) of the inner pixels."""
    rows = grey[..., :-2, :, :] + grey[..., 1:-1, :, :] + grey[..., 2:, :, :]
    across = (rows[..., 2:, :] - rows[..., :-2, :]) / 3
    columns = grey[..., :-2, :] + grey[..., 1:-1, :] + grey[..., 2:, :]
    down = (columns[..., 2:, :, :] - columns[..., :-2, :, :]) / 3
    return jnp.sqrt(across**2 + down**2)


def _ssim_maps(
    a: Float[Array, "*batch h w c"], b: Float[Array, "*batch h w c"]
) -> tuple[Array, Array]:
    """Return the luminance and the contrast-structure map, [*batch, h - 10, w - 10, c]."""
    ms_ssim_scales(a.shape[-3], a.shape[-2])
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a * mean_a
    variance_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (variance_a + variance_b + c2)


def _blur(image: Float[Array, "*batch h w c"]) -> Float[Array, "*batch h2 w2 c"]:
    """Separable Gaussian over the windows that lie within the image."""
    *batch, height, width, channels = image.shape
    offsets = jnp.arange(WINDOW, dtype=jnp.float32) - WINDOW // 2
    kernel = jnp.exp(-0.5 * (offsets / SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    planes = jnp.moveaxis(image, -1, -3).reshape(-1, 1, height, width)
    for shape in ((1, 1, WINDOW, 1), (1, 1, 1, WINDOW)):
        planes = lax.conv_general_dilated(
            planes, kernel.reshape(shape), (1, 1), "VALID", precision=lax.Precision.HIGHEST
        )
    planes = planes.reshape(*batch, channels, height - WINDOW + 1, width - WINDOW + 1)
    return jnp.moveaxis(planes, -3, -1)
