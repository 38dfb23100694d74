"""Log lines of the control process on stderr: one line each, plain or JSON."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

Format = Literal["plain", "json"]
Level = Literal["debug", "info", "warning", "error"]

log = logging.getLogger("graylb")


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return "graylb: " + level + super().format(record).replace("\n", "\n  ")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


class _Stderr(logging.Handler):
    """Whatever `sys.stderr` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def configure(kind: Format, level: Level = "info") -> None:
    """Sends the log to stderr in the given form, in place of what was configured before."""
    handler = _Stderr()
    handler.setFormatter(_Json() if kind == "json" else _Plain())
    log.handlers = [handler]
    log.propagate = False
    set_level(level)


def level() -> str:
    """Lines below it are left out."""
    return logging.getLevelName(log.level).lower()


def set_level(wanted: Level) -> None:
    log.setLevel(wanted.upper())
