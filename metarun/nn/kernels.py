"""The loops of `on_cpu`: batch norm of [batch, channels, pixels], a 2x2 max-pool or none, a leaky ReLU.

    h = (x - mean) r,  r = 1 / sqrt(var + eps);   p = h, or h at each square's maximum;   y = leaky_relu(p w + b)

Numba compiles them at the first call and keeps the result on disk. Each acts on channels `first` to `last`, and writes
into its last arguments. Sums over a plane have the type of x, those over planes are float64. With g the gradient of
p w + b, S(g) the same put where its elements lie in x, and n the elements of a channel:

    d/db = sum g,  d/dw = sum g p,  d/dx = w r (S(g) - (d/db) / n - h (d/dw) / n)

`backward_twice` is the derivative of <v, d/dx> + <vw, d/dw> + <vb, d/db>. Each goes through memory twice, for its sums
and to write, where torch's operations do some thirty times. Of equal elements of a square the first has the gradient,
as in torch; where w = 0 makes all of them equal, x's largest has it.
"""

from __future__ import annotations

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
FAST = {"reassoc", "contract", "nsz", "arcp"}  # sums in any order; NaN and infinity stay what they are


def njit_helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """A loop that others call, and that is compiled into them."""
    return numba.njit(function, fastmath=FAST, error_model="numpy", nogil=True)


class CachedKernel:
    """Compiled at its first call; on disk for the next process where there is a place for that.

    Its name there holds this file's digest: numba would load an older version's loops where a write failed half way.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        function.__qualname__ += f"-{DIGEST}"
        self.function = function
        self.compiled: Any
        try:
            self.compiled = numba.njit(function, fastmath=FAST, error_model="numpy", nogil=True, cache=True)
        except RuntimeError:  # neither beside this file nor in the user's cache folder
            self.compiled = njit_helper(function)

    def __call__(self, *given: Any) -> None:
        try:
            self.compiled(*given)
        except NumbaError:
            raise
        except Exception as error:  # of a file, before the loops begin, which raise nothing
            log.warning(
                "the compiled loops in %s cannot be read or written, they are compiled for this process alone: %r; "
                "delete the files there whose names begin with kernels",
                *(self.compiled.stats.cache_path, error),
            )
            self.compiled = njit_helper(self.function)
            self.compiled(*given)


@njit_helper
def statistics(x, channel, eps):
    """Mean, and 1 / sqrt(variance + eps), plane by plane (Chan, Golub, LeVeque 1979)."""
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
def maxima(plane, width, falling, largest, place):
    """Of each 2x2 square of a plane, where they lie in it: the first of equal ones, row by row. Falling: minima."""
    one, zero, across = np.uint32(1), np.uint32(0), np.uint32(width)
    half = width // 2
    for row in range(largest.size // half):
        top = plane[2 * row * width : (2 * row + 1) * width]
        bottom = plane[(2 * row + 1) * width : (2 * row + 2) * width]
        values, places = largest[row * half : (row + 1) * half], place[row * half : (row + 1) * half]
        start = np.uint32(2 * row * width)
        for column in range(half):
            a, b, c, d = top[2 * column], top[2 * column + 1], bottom[2 * column], bottom[2 * column + 1]
            second = (b < a if falling else b > a) or b != b
            upper = b if second else a
            where = one if second else zero
            second = (d < c if falling else d > c) or d != d
            lower = d if second else c
            below = across + (one if second else zero)
            second = (lower < upper if falling else lower > upper) or lower != lower
            values[column] = lower if second else upper
            places[column] = start + np.uint32(2 * column) + (below if second else where)


@CachedKernel
def forward(x, width, weight, bias, eps, slope, first, last, y, place, p, mean, reciprocal):
    """place: [batch, channels, squares], of each square's maximum in its plane, by number; or [0], without a pool."""
    low = x.dtype.type(slope)
    for channel in range(first, last):
        mean[channel], reciprocal[channel] = statistics(x, channel, eps)
        w, b, m, r = weight[channel], bias[channel], mean[channel], reciprocal[channel]
        for image in range(x.shape[0]):
            normal = p[image, channel]
            output = y[image, channel]
            values = x[image, channel]
            if place.ndim == 3:
                maxima(x[image, channel], width, w < 0, p[image, channel], place[image, channel])
                values = normal
            for k in range(normal.size):
                normal[k] = (values[k] - m) * r
                z = normal[k] * w + b
                output[k] = z if not z < 0 else low * z if low else low  # 0 of an infinity too


@njit_helper
def relu_backward(gradient, p, w, b, low):
    """An entry of y's gradient, behind the leaky ReLU."""
    return gradient if p * w + b > 0 else low * gradient if low else low


@njit_helper
def add(gradient, p, w, b, low, scale, place, output):
    """scale S(g) to a plane."""
    if place is None:
        for k in range(p.size):
            output[k] += scale * relu_backward(gradient[k], p[k], w, b, low)
    else:
        for k in range(p.size):
            output[place[k]] += scale * relu_backward(gradient[k], p[k], w, b, low)


@CachedKernel
def max_pool(x, width, first, last, place, largest):
    """The max-pool alone; its gradient goes where the maxima lie."""
    for channel in range(first, last):
        for image in range(x.shape[0]):
            maxima(x[image, channel], width, False, largest[image, channel], place[image, channel])


@CachedKernel
def backward(gy, slope, x, weight, bias, place, p, mean, reciprocal, first, last, gx, gw, gb):
    kind = x.dtype.type
    low = kind(slope)
    count = x.shape[0] * x.shape[2]
    for channel in range(first, last):
        w, b = weight[channel], bias[channel]
        by_b, by_w = 0.0, 0.0
        for image in range(x.shape[0]):
            gradient = gy[image, channel]
            normal = p[image, channel]
            one, two = kind(0), kind(0)
            for k in range(normal.size):
                g = relu_backward(gradient[k], normal[k], w, b, low)
                one += g
                two += g * normal[k]
            by_b += one
            by_w += two
        gb[channel], gw[channel] = by_b, by_w
        scale = kind(w * reciprocal[channel])
        linear = kind(-scale * reciprocal[channel] * by_w / count)
        constant, m = kind(-scale * by_b / count), mean[channel]
        for image in range(x.shape[0]):
            gradient = gy[image, channel]
            normal = p[image, channel]
            values = x[image, channel]
            output = gx[image, channel]
            for k in range(values.size):
                output[k] = constant + linear * (values[k] - m)
            add(gradient, normal, w, b, low, scale, place[image, channel] if place.ndim == 3 else None, output)


@CachedKernel
def backward_twice(
    v, vw, vb, gw, gb, gy, slope, x, weight, bias, place, p, mean, reciprocal, first, last, d_gy, d_x, d_w
):
    """v, vw, vb: the gradients by gx, gw, gb; d_gy, d_x, d_w: those by gy, x and weight."""
    kind = x.dtype.type
    low = kind(slope)
    count = x.shape[0] * x.shape[2]
    for channel in range(first, last):
        w, b, m, r = weight[channel], bias[channel], mean[channel], reciprocal[channel]
        by_w, by_b = gw[channel], gb[channel]
        sum_v, sum_vh = 0.0, 0.0
        for image in range(x.shape[0]):
            values = x[image, channel]
            outer = v[image, channel]
            one, two = kind(0), kind(0)
            for k in range(values.size):
                one += outer[k]
                two += outer[k] * (values[k] - m)
            sum_v += one
            sum_vh += two * r
        scale = kind(w * r)
        of_normal = kind(vw[channel] - scale * sum_vh / count)
        of_one = kind(vb[channel] - scale * sum_v / count)
        inner = -(by_b * sum_v + by_w * sum_vh) / count  # <v, d/dx> / (w r)
        for image in range(x.shape[0]):
            outer = v[image, channel]
            gradient = gy[image, channel]
            normal = p[image, channel]
            output = d_gy[image, channel]
            if place.ndim == 3:
                where = place[image, channel]
                for k in range(normal.size):
                    output[k] = outer[where[k]]
                outer = output
            one = kind(0)
            for k in range(normal.size):
                at = outer[k]
                one += at * relu_backward(gradient[k], normal[k], w, b, low)
                output[k] = relu_backward(scale * at + of_one + of_normal * normal[k], normal[k], w, b, low)
            inner += one
        d_w[channel] = r * inner
        # by h: of_v v + of_normal S(g); its mean and its mean with h are those of the sums above
        of_v = -scale * by_w / count
        mean_h = (of_v * sum_v + of_normal * by_b) / count
        mean_hh = (of_v * sum_vh + of_normal * by_w) / count + inner * w * r / count  # the second by r itself
        by_v, by_g, linear = kind(r * of_v), kind(r * of_normal), kind(-r * r * mean_hh)
        constant = kind(-r * mean_h)
        for image in range(x.shape[0]):
            values = x[image, channel]
            outer = v[image, channel]
            gradient = gy[image, channel]
            normal = p[image, channel]
            output = d_x[image, channel]
            for k in range(values.size):
                output[k] = constant + linear * (values[k] - m) + by_v * outer[k]
            add(gradient, normal, w, b, low, by_g, place[image, channel] if place.ndim == 3 else None, output)
