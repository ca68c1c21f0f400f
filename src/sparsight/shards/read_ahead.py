"""One thread that works ahead of whoever asks."""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
END = object()


def read_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items in the same order, made by a thread that keeps up to `depth` of them ready.

    An error in the making is raised here, in its place. Closing this stops the thread and closes `items`.
    """
    room, made = threading.Semaphore(depth), SimpleQueue[Any]()
    stopped = threading.Event()

    def work() -> None:
        try:
            while room.acquire() and not stopped.is_set():
                made.put((next(items, END), None))
        except BaseException as error:
            made.put((END, error))
        finally:
            items.close()

    thread = threading.Thread(target=work, name="reads ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
            del item
            room.release()
    finally:
        stopped.set()
        room.release()
        thread.join()
