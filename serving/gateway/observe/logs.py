"""Logs: this process's log, as JSON lines for collectors or as text for eyes."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import msgspec


class _Line(msgspec.Struct):
    time_s: float
    level: str
    logger: str
    message: str


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = _Line(round(record.created, 3), record.levelname.lower(), record.name, record.getMessage())
        return msgspec.json.encode(line).decode()


def start(log_format: Literal["json", "text"]) -> None:
    """Log to standard error from here on."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(_JsonLines() if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
