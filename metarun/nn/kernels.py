"""Numba loops of `metarun.nn.fused`: batch norm over [batch, channels, pixels], an optional 2x2 max-pool, a leaky ReLU.

    h = (x - mean) r,  r = 1 / sqrt(var + eps);  p = h, or h at the maximum of each 2x2 square;  y = leaky_relu(p w + b)

Numba compiles each kernel at its first call and caches the result on disk. A kernel computes the channels `first` to
`last - 1` and writes into its last arguments. Sums over an image have the dtype of x, sums over images are float64.
Let g be the gradient with respect to p w + b, S(g) the same with each element moved to its pixel in x, and n the number
of elements of a channel. Then

    dw = sum g p,  db = sum g,  dx = w r (S(g) - db / n - h dw / n)

(Ioffe and Szegedy 2015, arXiv 1502.03167, section 3). `double_backward` differentiates <v, dx> + <vw, dw> + <vb, db>.
Each kernel passes through memory twice, once for its sums and once to write; torch's operations do so about thirty
times. Of equal elements of a square the first gets the gradient, as in torch; where w = 0 makes all of them equal, it
is the one with the largest x.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.errors import NumbaError

log = logging.getLogger(__name__)

DIGEST = f"{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}-{numba.__version__}"
FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums may be reordered; NaN and infinity are kept


def njit_helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that kernels call; it is compiled into each of them."""
    return numba.njit(function, fastmath=FAST, error_model="numpy", nogil=True)


class CachedKernel:
    """A kernel that is compiled at its first call and, where possible, cached on disk for later processes.

    The cached name holds this file's digest: after an interrupted write numba would load an older version's code.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        function.__qualname__ += f"-{DIGEST}"
        self.function = function
        self.compiled: Any
        try:
            self.compiled = numba.njit(function, fastmath=FAST, error_model="numpy", nogil=True, cache=True)
        except RuntimeError:  # no cache folder can be written
            self.compiled = njit_helper(function)

    def __call__(self, *args: Any) -> None:
        try:
            self.compiled(*args)
        except NumbaError:
            raise
        except Exception as error:  # from the cache files: the kernels themselves raise nothing
            log.warning(
                "the compiled loops in %s cannot be read or written, they are compiled for this process alone: %r; "
                "delete the files there whose names begin with kernels",
                *(self.compiled.stats.cache_path, error),
            )
            self.compiled = njit_helper(self.function)
            self.compiled(*args)


@njit_helper
def statistics(x, channel, eps):
    """A channel's mean and 1 / sqrt(variance + eps), merged image by image (Chan, Golub, LeVeque 1979)."""
    # of an image: `own` mean, squares `around` it, `apart` from the mean so far; other names change the order of sums
    zero = x.dtype.type(0)
    size = x.shape[2]
    mean = 0.0
    squares = 0.0
    for image in range(x.shape[0]):
        plane = x[image, channel]
        total = zero
        for k in range(size):
            total += plane[k]
        own = x.dtype.type(total / size)
        around = zero
        for k in range(size):
            around += (plane[k] - own) * (plane[k] - own)
        apart = own - mean
        squares += around + apart * apart * size * image / (image + 1)
        mean += apart / (image + 1)
    return mean, 1 / np.sqrt(squares / (x.shape[0] * size) + eps)


@njit_helper
def pool_plane(plane, width, minimum, values, indices):
    """Write the maximum of each 2x2 square of a plane, and its pixel's number in the plane; the minimum if `minimum`.

    The first of equal elements is taken, row by row.
    """
    one, zero, below = np.uint32(1), np.uint32(0), np.uint32(width)
    half = width // 2
    for row in range(values.size // half):
        top = plane[2 * row * width : (2 * row + 1) * width]
        bottom = plane[(2 * row + 1) * width : (2 * row + 2) * width]
        row_values, row_indices = values[row * half : (row + 1) * half], indices[row * half : (row + 1) * half]
        start = np.uint32(2 * row * width)
        for column in range(half):
            a, b, c, d = top[2 * column], top[2 * column + 1], bottom[2 * column], bottom[2 * column + 1]
            second = (b < a if minimum else b > a) or b != b
            upper = b if second else a
            upper_offset = one if second else zero
            second = (d < c if minimum else d > c) or d != d
            lower = d if second else c
            lower_offset = below + (one if second else zero)
            second = (lower < upper if minimum else lower > upper) or lower != lower
            row_values[column] = lower if second else upper
            row_indices[column] = start + np.uint32(2 * column) + (lower_offset if second else upper_offset)


@CachedKernel
def forward(x, width, weight, bias, eps, slope, first, last, y, pixel, p, mean, reciprocal):
    """Write y, and for the gradients p, mean, reciprocal (r), and pixel.

    pixel: [batch, channels, squares], the number of the pixel in its image where each square's maximum lies; or [0]
    without a pool.
    """
    low = x.dtype.type(slope)
    for channel in range(first, last):
        mean[channel], reciprocal[channel] = statistics(x, channel, eps)
        w, b, m, r = weight[channel], bias[channel], mean[channel], reciprocal[channel]
        for image in range(x.shape[0]):
            normal = p[image, channel]
            output = y[image, channel]
            values = x[image, channel]
            if pixel.ndim == 3:
                pool_plane(x[image, channel], width, w < 0, p[image, channel], pixel[image, channel])
                values = normal
            for k in range(normal.size):
                normal[k] = (values[k] - m) * r
                z = normal[k] * w + b
                output[k] = z if not z < 0 else low * z if low else low  # low = 0 must not make NaN of infinity


@njit_helper
def relu_backward(gradient, p, w, b, low):
    """The gradient of one element of p w + b, from that of y."""
    return gradient if p * w + b > 0 else low * gradient if low else low


@njit_helper
def scatter_add(gradient, p, w, b, low, scale, pixel, output):
    """Add scale * S(g) to a plane of `output`."""
    if pixel is None:
        for k in range(p.size):
            output[k] += scale * relu_backward(gradient[k], p[k], w, b, low)
    else:
        for k in range(p.size):
            output[pixel[k]] += scale * relu_backward(gradient[k], p[k], w, b, low)


@CachedKernel
def max_pool(x, width, first, last, pixel, largest):
    """Write each square's maximum and its pixel in its image: a max-pool without batch norm."""
    for channel in range(first, last):
        for image in range(x.shape[0]):
            pool_plane(x[image, channel], width, False, largest[image, channel], pixel[image, channel])


@CachedKernel
def backward(gy, slope, x, weight, bias, pixel, p, mean, reciprocal, first, last, gx, gw, gb):
    """Write gx, gw, gb: the gradients with respect to x, w and b."""
    dtype = x.dtype.type
    low = dtype(slope)
    count = x.shape[0] * x.shape[2]
    for channel in range(first, last):
        w, b = weight[channel], bias[channel]
        db, dw = 0.0, 0.0
        for image in range(x.shape[0]):
            gy_plane = gy[image, channel]
            p_plane = p[image, channel]
            sum_g, sum_gp = dtype(0), dtype(0)
            for k in range(p_plane.size):
                g = relu_backward(gy_plane[k], p_plane[k], w, b, low)
                sum_g += g
                sum_gp += g * p_plane[k]
            db += sum_g
            dw += sum_gp
        gb[channel], gw[channel] = db, dw
        scale = dtype(w * reciprocal[channel])
        linear = dtype(-scale * reciprocal[channel] * dw / count)
        constant, m = dtype(-scale * db / count), mean[channel]
        for image in range(x.shape[0]):
            gy_plane = gy[image, channel]
            p_plane = p[image, channel]
            x_plane = x[image, channel]
            output = gx[image, channel]
            for k in range(x_plane.size):
                output[k] = constant + linear * (x_plane[k] - m)
            scatter_add(gy_plane, p_plane, w, b, low, scale, pixel[image, channel] if pixel.ndim == 3 else None, output)


@CachedKernel
def double_backward(
    v, vw, vb, gw, gb, gy, slope, x, weight, bias, pixel, p, mean, reciprocal, first, last, d_gy, d_x, d_w
):
    """Write the gradients of <v, gx> + <vw, gw> + <vb, gb> with respect to gy, x and w."""
    dtype = x.dtype.type
    low = dtype(slope)
    count = x.shape[0] * x.shape[2]
    for channel in range(first, last):
        w, b, m, r = weight[channel], bias[channel], mean[channel], reciprocal[channel]
        dw, db = gw[channel], gb[channel]
        sum_v, sum_vh = 0.0, 0.0
        for image in range(x.shape[0]):
            x_plane = x[image, channel]
            v_plane = v[image, channel]
            plane_v, plane_vx = dtype(0), dtype(0)
            for k in range(x_plane.size):
                plane_v += v_plane[k]
                plane_vx += v_plane[k] * (x_plane[k] - m)
            sum_v += plane_v
            sum_vh += plane_vx * r
        scale = dtype(w * r)
        p_factor = dtype(vw[channel] - scale * sum_vh / count)
        g_constant = dtype(vb[channel] - scale * sum_v / count)
        inner = -(db * sum_v + dw * sum_vh) / count  # becomes <v, gx> / (w r)
        for image in range(x.shape[0]):
            v_plane = v[image, channel]
            gy_plane = gy[image, channel]
            p_plane = p[image, channel]
            output = d_gy[image, channel]
            if pixel.ndim == 3:
                pixel_plane = pixel[image, channel]
                for k in range(p_plane.size):
                    output[k] = v_plane[pixel_plane[k]]
                v_plane = output
            plane_vg = dtype(0)
            for k in range(p_plane.size):
                v_k = v_plane[k]
                plane_vg += v_k * relu_backward(gy_plane[k], p_plane[k], w, b, low)
                output[k] = relu_backward(scale * v_k + g_constant + p_factor * p_plane[k], p_plane[k], w, b, low)
            inner += plane_vg
        d_w[channel] = r * inner
        # the gradient with respect to h is v_factor v + p_factor S(g); its mean, and that times h, follow from the sums
        v_factor = -scale * dw / count
        mean_h = (v_factor * sum_v + p_factor * db) / count
        mean_hh = (v_factor * sum_vh + p_factor * dw) / count + inner * w * r / count  # the last term is of r
        v_scale, g_scale, linear = dtype(r * v_factor), dtype(r * p_factor), dtype(-r * r * mean_hh)
        constant = dtype(-r * mean_h)
        for image in range(x.shape[0]):
            x_plane = x[image, channel]
            v_plane = v[image, channel]
            gy_plane = gy[image, channel]
            p_plane = p[image, channel]
            output = d_x[image, channel]
            for k in range(x_plane.size):
                output[k] = constant + linear * (x_plane[k] - m) + v_scale * v_plane[k]
            scatter_add(
                gy_plane, p_plane, w, b, low, g_scale, pixel[image, channel] if pixel.ndim == 3 else None, output
            )
