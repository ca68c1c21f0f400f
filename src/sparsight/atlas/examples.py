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
    body = b""
    if examples:
        length = np.array([len(one.values) for one in examples])
        values = np.concatenate([one.values for one in examples])
        row, start = np.repeat(np.arange(len(examples)), length), np.cumsum(length) - length
        for name in ("at", "value"):
            head[name] = [getattr(one, name) for one in examples]
        head["peak"] = np.maximum(np.maximum.reduceat(values, start), head["value"])
        head["before"], head["length"] = [one.at - one.start for one in examples], length
        head["kind"] = [TOP * one.top + SAMPLED * one.sampled for one in examples]
        active = np.flatnonzero(values)
        head["active"] = np.bincount(row[active], minlength=len(examples))
        share = np.clip(np.rint(values[active] / head["peak"][row[active]] * 255), 1, 255)
        offset = active - start[row[active]]
        body = b"".join(each.astype(np.uint8).tobytes() for each in (offset, share))
    return zlib.compress(len(examples).to_bytes(4, "little") + head.tobytes() + body, 6)


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
