"""Orders that can be computed again: from a seed, on any machine, with any version of any library.

Number i of stream k is mix(k + i · GOLDEN), the SplitMix64 of Steele, Lea and Flood (2014). Mixing is one-to-one: the
numbers of a stream are all different, and sorting them gives one permutation and no other.
"""

from __future__ import annotations

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(numbers: np.ndarray) -> np.ndarray:
    """uint64 in, uint64 out, one-to-one: neighbours come out as strangers. The array is changed in place."""
    for shift, factor in ((30, FIRST), (27, SECOND)):
        numbers ^= numbers >> np.uint64(shift)
        numbers *= factor
    numbers ^= numbers >> np.uint64(31)
    return numbers


def key(*numbers: int) -> int:
    """One number below 2^64 from several; another order or number gives another key."""
    out = np.zeros(1, np.uint64)
    for number in numbers:
        out = mixed((out ^ np.array([number % 2**64], np.uint64)) + GOLDEN)
    return int(out[0])


def permutation(length: int, *numbers: int) -> np.ndarray:
    """The numbers from 0 to length - 1, int64, in the order that belongs to key(*numbers)."""
    stream = np.arange(length, dtype=np.uint64) * GOLDEN + np.array([key(*numbers)], np.uint64)
    return mixed(stream).argsort()


def is_held_out(conversations: np.ndarray, share: float) -> np.ndarray:
    """Which conversations are held out, bool: about this share of them, and always the same ones."""
    return mixed(conversations.astype(np.uint64) + GOLDEN) < np.uint64(share * 2**64)
