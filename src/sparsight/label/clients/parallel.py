"""Several things at once, in threads, without running ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def at_once(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """(item, what work makes of it) as they come. No more than `threads` items are taken before one is done.

    Where one fails, no new one is begun, those under way are waited for and given, and then its error is raised:
    what they cost is not lost.
    """
    source = iter(items)
    under_way: dict[Future[R], T] = {}
    failure: BaseException | None = None
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            while failure is None and len(under_way) < threads:
                try:
                    item = next(source)
                except StopIteration:
                    break
                under_way[pool.submit(work, item)] = item
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                item = under_way.pop(future)
                if error := future.exception():
                    failure = failure or error
                else:
                    yield item, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if failure:
        raise failure
