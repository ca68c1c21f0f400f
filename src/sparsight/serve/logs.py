"""What a server tells of itself: one JSON object a line, on standard error. No prompt and no answer, unless asked."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LOG = logging.getLogger("sparsight.serve")
LOG.addHandler(logging.NullHandler())


class Lines(logging.Formatter):
    """A record as a line: time (UTC), level, event, and whatever facts came with it."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def tell(event: str, *, error: BaseException | None = None, **facts: Any) -> None:
    """One line. error: one that nobody foresaw, with its traceback."""
    level = logging.INFO if error is None else logging.ERROR
    LOG.log(level, event, extra={"facts": facts}, exc_info=error)


def to_standard_error() -> None:
    """Send these lines, and the web server's own, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name, level in (
        ("sparsight.serve", logging.INFO),
        ("uvicorn.error", logging.WARNING),
        ("uvicorn", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = name == "uvicorn.error"
        logger.handlers = [] if name == "uvicorn.error" else [handler]
    logging.getLogger("uvicorn.access").disabled = True  # our own line says more
