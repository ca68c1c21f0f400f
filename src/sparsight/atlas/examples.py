"""The examples of a feature as bytes, and back: places in the tokens file, and activations around them.

Of a window only the tokens where the feature is active are kept, each as an offset (one byte) and a share of the
window's peak (one byte, in 255ths, at least one): within 0.2 % of the peak. The peak is that of the window: a place of
a fair sample need not be the strongest around.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from sparsight.atlas.entries import Example
from sparsight.errors import BadFile

LONGEST = 255  # tokens of a window
TOP, SAMPLED = 1, 2
HEAD = np.dtype(
    [
        ("at", "<u4"),
        ("value", "<f4"),
        ("peak", "<f4"),
        ("before", "u1"),
        ("length", "u1"),
        ("kind", "u1"),
        ("active", "u1"),
    ]
)


def pack(examples: Sequence[Example]) -> bytes:
    """The examples of one feature; which document a place is in is known from the place."""
    head = np.zeros(len(examples), HEAD)
    offsets, shares = [], []
    for row, one in zip(head, examples, strict=True):
        (active,) = np.nonzero(one.values)
        peak = one.values.max(initial=one.value)
        row["at"], row["value"], row["before"], row["length"] = one.at, one.value, one.at - one.start, len(one.values)
        row["kind"], row["active"] = TOP * one.top + SAMPLED * one.sampled, len(active)
        row["peak"] = peak
        offsets.append(active)
        shares.append(np.clip(np.rint(one.values[active] / peak * 255), 1, 255))
    body = [np.concatenate(each).astype(np.uint8).tobytes() if each else b"" for each in (offsets, shares)]
    return zlib.compress(len(examples).to_bytes(4, "little") + head.tobytes() + b"".join(body), 6)


def unpack(packed: bytes) -> tuple[np.ndarray, list[np.ndarray]]:
    """(HEAD rows, activations of each window). Raises BadFile where the bytes are no examples."""
    try:
        raw = zlib.decompress(packed)
        count = int.from_bytes(raw[:4], "little")
        end = 4 + count * HEAD.itemsize
        head = np.frombuffer(raw[4:end], HEAD, count)
        active = head["active"].astype(int)
        body = np.frombuffer(raw[end:], np.uint8)
        if len(body) != 2 * active.sum():
            raise ValueError(f"{len(body)} bytes of windows, not {2 * active.sum()}")
        starts = np.concatenate([[0], active.cumsum()])
        windows = []
        for row, start, stop in zip(head, starts, starts[1:], strict=False):
            values = np.zeros(int(row["length"]), np.float32)
            values[body[start:stop]] = body[starts[-1] + start : starts[-1] + stop] * (row["peak"] / np.float32(255))
            windows.append(values)
    except (zlib.error, ValueError, IndexError) as error:
        raise BadFile(f"These bytes are no examples: {error}.") from error
    return head, windows
