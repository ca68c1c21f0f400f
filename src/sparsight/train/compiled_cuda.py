"""The sparse parts of a training step, compiled for a GPU by Triton. `plain.py` does the same with torch.

A row, a part of a row, or a feature is one program, which adds up in an order of its own: the same numbers come out
every time, and no float is added to by two. Matrices lie by feature, so that each row that is gathered is contiguous.
Sums are of the weights' dtype, float32 or float64; pre-activations may be bfloat16.

BLOCK: columns of a program, a power of two; PAIRS: rows that are gathered at once.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

ROUNDS = tl.constexpr(24)  # of halving, at most


@triton.jit
def _found(pre, bias, least, floor, row, columns, width):
    """pre + bias, and whether it is above the least of its feature and the floor of its row."""
    inside = columns < width
    b = tl.load(bias + columns, mask=inside, other=0)
    value = tl.load(pre + row * width + columns, mask=inside, other=0).to(b.dtype) + b
    return value, inside & (value > tl.load(least + columns, mask=inside, other=0)) & (value > floor)


@triton.jit
def count_above(pre, bias, least, floor, counts, width, parts, BLOCK: tl.constexpr):
    """counts[row, part of a row] = how many features have pre + bias > least of the feature and floor of the row."""
    program = tl.program_id(0).to(tl.int64)
    row, columns = program // parts, program % parts * BLOCK + tl.arange(0, BLOCK)
    _, found = _found(pre, bias, least, tl.load(floor + row), row, columns, width)
    tl.store(counts + program, tl.sum(found.to(tl.int32)))


@triton.jit
def take_above(pre, bias, least, floor, before, features, values, width, parts, BLOCK: tl.constexpr):
    """The pairs that count_above counted, with their pre + bias. before: how many there are in the parts before."""
    program = tl.program_id(0).to(tl.int64)
    row, columns = program // parts, program % parts * BLOCK + tl.arange(0, BLOCK)
    value, found = _found(pre, bias, least, tl.load(floor + row), row, columns, width)
    place = tl.load(before + program) + tl.cumsum(found.to(tl.int32)) - 1
    tl.store(features + place, columns.to(tl.int32), mask=found)
    tl.store(values + place, value, mask=found)


@triton.jit
def _count(pre, bias, least, floor, row, width, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.int32)
    for start in range(0, width, BLOCK):
        _, found = _found(pre, bias, least, floor, row, start + tl.arange(0, BLOCK), width)
        total += found.to(tl.int32)
    return tl.sum(total)


@triton.jit
def lower_floors(pre, bias, least, floor, counts, k, most, width, BLOCK: tl.constexpr):
    """Where fewer than k of a row are above its floor (counts says how many): a lower floor, found by halving, with k
    to `most` above it, if that can be; 0 where no more than `most` are above 0."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(counts + row) < k:
        high = tl.load(floor + row)
        low = high * 0
        n = _count(pre, bias, least, low, row, width, BLOCK)
        rounds = 0
        while (rounds < ROUNDS) & ((n < k) | (n > most)) & ((rounds > 0) | (n > most)):
            middle = (low + high) / 2
            n = _count(pre, bias, least, middle, row, width, BLOCK)
            low, high = tl.where(n >= k, middle, low), tl.where(n >= k, high, middle)
            rounds += 1
        tl.store(floor + row, low)


@triton.jit
def take_strongest(offsets, keys, features, values, k, to, to_features, to_values, bounds, BLOCK: tl.constexpr):
    """Of each row the k pairs of highest key (int64, in the order of the values), of equal ones the first; bounds[row]:
    the k-th highest value, 0 in a row that has no more than k. to: where each row's pairs go."""
    row = tl.program_id(0)
    start, stop, at = tl.load(offsets + row), tl.load(offsets + row + 1), tl.load(to + row)
    pair = tl.arange(0, BLOCK)
    full = stop - start > k
    low = tl.load(keys + start, mask=full, other=0)
    high = low
    for first in range(start, stop, BLOCK):
        here = first + pair < stop
        low = tl.minimum(low, tl.min(tl.load(keys + first + pair, mask=here, other=0x7FFFFFFFFFFFFFFF)))
        high = tl.maximum(high, tl.max(tl.load(keys + first + pair, mask=here, other=-0x7FFFFFFFFFFFFFFF)))
    low = tl.where(full, low, -0x7FFFFFFFFFFFFFFF)
    while full & (low < high):  # k or more are at least `low`, fewer are above `high`
        middle = (low | high) - ((low ^ high) >> 1)
        n = tl.zeros([BLOCK], tl.int32)
        for first in range(start, stop, BLOCK):
            here = first + pair < stop
            n += (here & (tl.load(keys + first + pair, mask=here, other=0) >= middle)).to(tl.int32)
        many = tl.sum(n) >= k
        low, high = tl.where(many, middle, low), tl.where(many, high, middle - 1)
    above = (stop - start).to(tl.int32) * 0
    for first in range(start, stop, BLOCK):
        here = first + pair < stop
        above += tl.sum((here & (tl.load(keys + first + pair, mask=here, other=0) > low)).to(tl.int32))
    room = tl.where(full, k - above, 0)  # for those that are equal to the k-th
    for first in range(start, stop, BLOCK):
        here = first + pair < stop
        key = tl.load(keys + first + pair, mask=here, other=0)
        value = tl.load(values + first + pair, mask=here, other=0)
        equal = here & (key == low)
        kept = here & ((key > low) | (equal & (tl.cumsum(equal.to(tl.int32)) <= room)))
        place = at + tl.cumsum(kept.to(tl.int32)) - 1
        tl.store(to_features + place, tl.load(features + first + pair, mask=here, other=0), mask=kept)
        tl.store(to_values + place, value, mask=kept)
        tl.store(bounds + row + pair * 0, value, mask=equal)
        room -= tl.sum(equal.to(tl.int32))
        at += tl.sum(kept.to(tl.int32))


@triton.jit
def _rows(data, which, here, columns, width):
    """data[which], zeros where not here."""
    at = data + which.to(tl.int64)[:, None] * width + columns[None, :]
    return tl.load(at, mask=here[:, None] & (columns < width)[None, :], other=0)


@triton.jit
def _dots(start, stop, e, features, weight, out, columns, width, PAIRS: tl.constexpr):
    for at in range(start, stop, PAIRS):
        pair = at + tl.arange(0, PAIRS)
        here = pair < stop
        rows = _rows(weight, tl.load(features + pair, mask=here, other=0), here, columns, width)
        tl.store(out + pair, tl.sum(rows * e[None, :], 1), mask=here)


@triton.jit
def dots(cuts, features, data, weight, out, width, GROUPS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr):
    """out[pair] = data[group of its feature, its row] · weight[its feature]. cuts[row, group]: where they begin."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    for group in range(GROUPS):
        e = tl.load(data + (group * tl.num_programs(0) + row) * width + columns, mask=columns < width, other=0)
        cut = cuts + row * (GROUPS + 1) + group
        _dots(tl.load(cut), tl.load(cut + 1), e, features, weight, out, columns, width, PAIRS)


@triton.jit
def decode(
    cuts, features, values, weight, bias, target, err, latent, losses, width,
    GROUPS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """err[g, row] = x_hat_g − target, where x_hat_g decodes the groups up to g; losses[g, row] = |err|². Of one group
    latent[pair] = err · weight[feature] too, while rows of the decoder are near."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = columns < width
    e = tl.load(bias + columns, mask=inside, other=0) - tl.load(target + row * width + columns, mask=inside, other=0)
    for group in range(GROUPS):
        cut = cuts + row * (GROUPS + 1) + group
        stop = tl.load(cut + 1)
        for at in range(tl.load(cut), stop, PAIRS):
            pair = at + tl.arange(0, PAIRS)
            here = pair < stop
            rows = _rows(weight, tl.load(features + pair, mask=here, other=0), here, columns, width)
            e += tl.sum(rows * tl.load(values + pair, mask=here, other=0)[:, None], 0)
        place = group * tl.num_programs(0) + row
        tl.store(err + place * width + columns, e, mask=inside)
        tl.store(losses + place, tl.sum(e * e))
    if GROUPS == 1:
        _dots(tl.load(cuts + row * 2), tl.load(cuts + row * 2 + 1), e, features, weight, latent, columns, width, PAIRS)


@triton.jit
def sums(starts, places, values, out, BLOCK: tl.constexpr):
    """out[feature] = Σ of its pairs' values."""
    f = tl.program_id(0)
    start, stop = tl.load(starts + f), tl.load(starts + f + 1)
    total = tl.zeros([BLOCK], values.dtype.element_ty)
    for at in range(start, stop, BLOCK):
        pair = at + tl.arange(0, BLOCK)
        here = pair < stop
        total += tl.load(values + tl.load(places + pair, mask=here, other=0), mask=here, other=0)
    tl.store(out + f, tl.sum(total))


@triton.jit
def _gradient(
    f, columns, starts, rows, places, values, data, ends, length, more_at, more, width,
    GROUPS: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Σ value · data[group of the feature, row] over the pairs of a feature, and its row of `more` if it has one."""
    group = f * 0
    for g in range(GROUPS):
        group += (f >= tl.load(ends + g)).to(tl.int64)
    data += group * length * width
    m = tl.load(more_at + f).to(tl.int64)
    out = tl.load(more + m * width + columns, mask=columns < tl.where(m >= 0, width, 0), other=0)
    stop = tl.load(starts + f + 1)
    for at in range(tl.load(starts + f), stop, PAIRS):
        pair = at + tl.arange(0, PAIRS)
        here = pair < stop
        value = tl.load(values + tl.load(places + pair, mask=here, other=0), mask=here, other=0)
        some = _rows(data, tl.load(rows + pair, mask=here, other=0), here, columns, width)
        out += tl.sum(some * value[:, None], 0)
    return out


@triton.jit
def _adam(w_at, m_at, v_at, inside, g, pull, hyper, UNIT: tl.constexpr):
    """Adam on whole rows, [row, column]; their norms after it."""
    w = tl.load(w_at, mask=inside, other=0)
    g += pull[:, None] * w
    if UNIT:
        g -= tl.sum(g * w, 1)[:, None] * w
    rate, b1, b2 = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    m, v = tl.load(m_at, mask=inside, other=0), tl.load(v_at, mask=inside, other=0)
    m += (g - m) * (1 - b1)
    v += (g * g - v) * (1 - b2)
    w -= rate * m / (tl.sqrt(v) * tl.load(hyper + 4) + tl.load(hyper + 3))
    norm = tl.sqrt(tl.sum(w * w, 1))
    if UNIT:
        w /= tl.where(norm > 0, norm, 1)[:, None]
        norm = norm * 0 + 1
    tl.store(w_at, w, mask=inside)
    tl.store(m_at, m, mask=inside)
    tl.store(v_at, v, mask=inside)
    return norm


@triton.jit
def gradients(
    order, starts, rows, places, values, data, ends, length, more_at, more, out, width,
    GROUPS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[f] = Σ value · data[group, row] + more, over the pairs of f. order: of the features."""
    f = tl.load(order + tl.program_id(0))
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g = _gradient(
        f, columns, starts, rows, places, values, data, ends, length, more_at, more, width, GROUPS, PAIRS
    )  # fmt: skip
    tl.store(out + f * width + columns, g, mask=columns < width)


@triton.jit
def step(
    order, starts, rows, places, values, data, ends, length, more_at, more, w, m, v, pull, hyper, norms, width,
    GROUPS: tl.constexpr, WHOLE: tl.constexpr, UNIT: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """gradients and descend at once: a row's gradient lives in registers, and nowhere else. WHOLE: a program has a
    whole row, which UNIT and norms need; else a part of its columns."""
    f = tl.load(order + tl.program_id(0))
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g = _gradient(
        f, columns, starts, rows, places, values, data, ends, length, more_at, more, width, GROUPS, PAIRS
    )  # fmt: skip
    at, inside = (f * width + columns)[None, :], (columns < width)[None, :]
    one = tl.arange(0, 1)
    norm = _adam(w + at, m + at, v + at, inside, g[None, :], tl.load(pull + f + one), hyper, UNIT)
    if WHOLE:
        tl.store(norms + f + one, norm)


@triton.jit
def descend(w, g, m, v, pull, hyper, norms, length, width, UNIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Adam on the rows of a matrix. UNIT: rows have norm 1, and keep it. pull: adds pull · w to a row's gradient."""
    f = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    at, inside = f[:, None] * width + columns[None, :], (f < length)[:, None] & (columns < width)[None, :]
    pulled = tl.load(pull + f, mask=f < length, other=0)
    norm = _adam(w + at, m + at, v + at, inside, tl.load(g + at, mask=inside, other=0), pulled, hyper, UNIT)
    tl.store(norms + f, norm, mask=f < length)
