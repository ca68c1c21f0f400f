"""The sparse parts of a training step, compiled for this processor by Numba. `plain.py` does the same with torch.

Active features are pairs, row by row (`offsets`, `features`), as in Codes; only pairs are touched. Rows, and features,
are independent of each other, so that the number of threads changes no bit. float32 and float64; pre-activations may
be bfloat16, given as uint16.
"""

from __future__ import annotations

import numpy as np
from numba import config, njit, prange, set_num_threads, types
from numba.extending import overload

__all__ = ["config", "set_num_threads"]  # beside the functions

fast = {"nogil": True, "cache": True, "fastmath": {"reassoc", "contract", "nsz", "arcp"}, "error_model": "numpy"}
parallel = {**fast, "parallel": True}


def _wide(value):
    """A float as it is; a uint16 as the bfloat16 it stands for, which is the upper half of a float32."""


@overload(_wide, inline="always")
def _wide_of(value):
    if isinstance(value, types.Float):
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


@njit(**parallel)
def count_above(pre, bias, least, floor, counts):
    """counts[row] = how many features have pre + bias > least of the feature and floor of the row."""
    for row in prange(pre.shape[0]):
        n, low = 0, floor[row]
        for j in range(pre.shape[1]):
            value = _wide(pre[row, j]) + bias[j]
            n += (value > least[j]) & (value > low)
        counts[row] = n


@njit(**parallel)
def take_above(pre, bias, least, floor, offsets, features, values):
    """The pairs that count_above counted, with their pre + bias."""
    for row in prange(pre.shape[0]):
        n, low, start = 0, floor[row], offsets[row]
        which, what = np.empty(pre.shape[1] + 1, np.int32), np.empty(pre.shape[1] + 1, bias.dtype)
        for j in range(pre.shape[1]):  # written in any case and kept or not: a branch would be guessed wrong
            value = _wide(pre[row, j]) + bias[j]
            which[n], what[n] = j, value
            n += (value > least[j]) & (value > low)
        for p in range(n):
            features[start + p], values[start + p] = which[p], what[p]


@njit(**parallel)
def keep_strongest(offsets, values, k, kept, bounds):
    """kept[pair]: whether it is among the k of highest value in its row; of equal ones the first ones are. bounds[row]:
    the k-th highest value, 0 in a row that has fewer."""
    for row in prange(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        n = stop - start
        bounds[row] = 0
        if n <= k:
            kept[start:stop] = True
        else:
            bound = np.partition(values[start:stop], n - k)[n - k]
            bounds[row] = bound
            room = k
            for p in range(start, stop):
                kept[p] = values[p] > bound
                room -= kept[p]
            for p in range(start, stop):
                if values[p] == bound and room > 0:
                    kept[p] = True
                    room -= 1


@njit(**fast)
def _four(e, w0, w1, w2, w3):
    s0 = s1 = s2 = s3 = e[0] * 0
    for c in range(len(e)):
        s0 += e[c] * w0[c]
        s1 += e[c] * w1[c]
        s2 += e[c] * w2[c]
        s3 += e[c] * w3[c]
    return s0, s1, s2, s3


@njit(**fast)
def _dots_of_row(at, stop, row, features, data, ends, weight, out):
    g = 0
    while at < stop:
        while features[at] >= ends[g]:
            g += 1
        e = data[g, row]
        if at + 3 < stop and features[at + 3] < ends[g]:
            w = weight[features[at]], weight[features[at + 1]], weight[features[at + 2]], weight[features[at + 3]]
            out[at], out[at + 1], out[at + 2], out[at + 3] = _four(e, w[0], w[1], w[2], w[3])
            at += 4
        else:
            w0, s = weight[features[at]], e[0] * 0
            for c in range(len(e)):
                s += e[c] * w0[c]
            out[at] = s
            at += 1


@njit(**parallel)
def dots(offsets, features, data, ends, weight, out):
    """out[pair] = data[group of its feature, its row] · weight[its feature]."""
    for row in prange(len(offsets) - 1):
        _dots_of_row(offsets[row], offsets[row + 1], row, features, data, ends, weight, out)


@njit(**parallel)
def decode(offsets, features, values, weight, bias, target, ends, err, latent, losses):
    """Errors and latent gradients of each row, while its decoder rows are near.

    x_hat_m = bias + Σ value · weight[feature], over the pairs with feature < ends[m]; err[g] = Σ_{m ≥ g} (x_hat_m −
    target); latent[pair] = err[group of its feature] · weight[feature]; losses[m, row] = |x_hat_m − target|².
    """
    groups, width = len(ends), target.shape[1]
    for row in prange(target.shape[0]):
        at, stop = offsets[row], offsets[row + 1]
        for g in range(groups):
            e = err[g, row]
            for c in range(width):
                e[c] = bias[c] - target[row, c] if g == 0 else err[g - 1, row, c]
            while at < stop and features[at] < ends[g]:
                if at + 3 < stop and features[at + 3] < ends[g]:
                    v0, v1, v2, v3 = values[at], values[at + 1], values[at + 2], values[at + 3]
                    w0, w1 = weight[features[at]], weight[features[at + 1]]
                    w2, w3 = weight[features[at + 2]], weight[features[at + 3]]
                    for c in range(width):
                        e[c] += v0 * w0[c] + v1 * w1[c] + v2 * w2[c] + v3 * w3[c]
                    at += 4
                else:
                    v0, w0 = values[at], weight[features[at]]
                    for c in range(width):
                        e[c] += v0 * w0[c]
                    at += 1
            total = e[0] * 0
            for c in range(width):
                total += e[c] * e[c]
            losses[g, row] = total
        for g in range(groups - 2, -1, -1):
            for c in range(width):
                err[g, row, c] += err[g + 1, row, c]
        _dots_of_row(offsets[row], stop, row, features, err, ends, weight, latent)


@njit(**fast)
def by_feature(offsets, features, starts, rows, places):
    """Pairs in order of feature: those of f are rows, places[starts[f] : starts[f + 1]], ascending by row."""
    starts[:] = 0
    for p in range(offsets[-1]):
        starts[features[p] + 1] += 1
    for f in range(len(starts) - 1):
        starts[f + 1] += starts[f]
    for row in range(len(offsets) - 1):
        for p in range(offsets[row], offsets[row + 1]):
            at = starts[features[p]]
            rows[at] = row
            places[at] = p
            starts[features[p]] = at + 1
    for f in range(len(starts) - 1, 0, -1):
        starts[f] = starts[f - 1]
    starts[0] = 0


@njit(**parallel)
def sums(starts, places, values, out):
    """out[feature] = Σ of its pairs' values."""
    for f in prange(len(out)):
        total = values.dtype.type(0)
        for p in range(starts[f], starts[f + 1]):
            total += values[places[p]]
        out[f] = total


@njit(**fast)
def _gather(out, start, stop, rows, places, values, data):
    """out += Σ value · data[row]"""
    p = start
    while p + 3 < stop:
        c0, c1 = values[places[p]], values[places[p + 1]]
        c2, c3 = values[places[p + 2]], values[places[p + 3]]
        d0, d1, d2, d3 = data[rows[p]], data[rows[p + 1]], data[rows[p + 2]], data[rows[p + 3]]
        for c in range(len(out)):
            out[c] += c0 * d0[c] + c1 * d1[c] + c2 * d2[c] + c3 * d3[c]
        p += 4
    while p < stop:
        c0, d0 = values[places[p]], data[rows[p]]
        for c in range(len(out)):
            out[c] += c0 * d0[c]
        p += 1


@njit(**fast)
def _adam(w, g, m, v, rate, b1, b2, eps, root):
    for c in range(len(w)):
        m[c] += (g[c] - m[c]) * (1 - b1)
        v[c] += (g[c] * g[c] - v[c]) * (1 - b2)
        w[c] -= rate * m[c] / (np.sqrt(v[c]) * root + eps)


@njit(**fast)
def _across(g, w):
    """Take off g what lies along w, of norm 1."""
    along = g[0] * 0
    for c in range(len(w)):
        along += g[c] * w[c]
    for c in range(len(w)):
        g[c] -= along * w[c]


@njit(**fast)
def _norm(w):
    size = w[0] * 0
    for c in range(len(w)):
        size += w[c] * w[c]
    return np.sqrt(size)


@njit(**parallel)
def gradients(starts, rows, places, enc, dec, x, err, ends, more_at, more_enc, more_dec, g_enc, g_dec):
    """g_enc[f] = Σ enc · x[row] + more_enc, g_dec[f] = Σ dec · err[group, row] + more_dec, over the pairs of f."""
    for f in prange(len(starts) - 1):
        g = 0
        while f >= ends[g]:
            g += 1
        m = more_at[f]
        for c in range(g_enc.shape[1]):
            g_enc[f, c] = more_enc[m, c] if m >= 0 else 0
        for c in range(g_dec.shape[1]):
            g_dec[f, c] = more_dec[m, c] if m >= 0 else 0
        _gather(g_enc[f], starts[f], starts[f + 1], rows, places, enc, x)
        _gather(g_dec[f], starts[f], starts[f + 1], rows, places, dec, err[g])


@njit(**parallel)
def descend(w, g, m, v, pull, hyper, unit, norms):
    """Adam on the rows of a matrix. unit: rows have norm 1, and keep it. pull: adds pull · w to a row's gradient."""
    for f in prange(len(w)):
        for c in range(w.shape[1]):
            g[f, c] += pull[f] * w[f, c]
        if unit:
            _across(g[f], w[f])
        _adam(w[f], g[f], m[f], v[f], hyper[0], hyper[1], hyper[2], hyper[3], hyper[4])
        norms[f] = _norm(w[f])
        if unit:
            w[f] /= norms[f]
            norms[f] = 1


@njit(**parallel)
def step(
    starts, rows, places, enc, dec, x, err, ends, more_at, more_enc, more_dec,
    W_enc, m_enc, v_enc, W_dec, m_dec, v_dec, pull, hyper, unit, norms,
):  # fmt: skip
    """gradients and descend at once: a row's gradient lives in the nearest cache, and nowhere else."""
    for f in prange(len(starts) - 1):
        g = 0
        while f >= ends[g]:
            g += 1
        m, start, stop = more_at[f], starts[f], starts[f + 1]
        a = np.zeros(W_enc.shape[1], W_enc.dtype)
        if m >= 0:
            a[:] = more_enc[m]
        _gather(a, start, stop, rows, places, enc, x)
        _adam(W_enc[f], a, m_enc[f], v_enc[f], hyper[0], hyper[1], hyper[2], hyper[3], hyper[4])
        b, w = np.zeros(W_dec.shape[1], W_dec.dtype), W_dec[f]
        if m >= 0:
            b[:] = more_dec[m]
        _gather(b, start, stop, rows, places, dec, err[g])
        for c in range(len(b)):
            b[c] += pull[f] * w[c]
        if unit:
            _across(b, w)
        _adam(w, b, m_dec[f], v_dec[f], hyper[0], hyper[1], hyper[2], hyper[3], hyper[4])
        norms[f] = _norm(w)
        if unit:
            w /= norms[f]
            norms[f] = 1
