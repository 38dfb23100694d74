"""The parts of graylb that need a C library, and may be missing from a build for want of its headers."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Final, Literal

Part = Literal["h2", "tls"]

_NEEDS: Final[dict[Part, tuple[str, str, str]]] = {
    "h2": ("graylb._h2", "HTTP/2", "libnghttp2-dev"),
    "tls": ("graylb._tls", "TLS", "libssl-dev"),
}
"""Module, what it is, and the Debian package that it is built with."""


@cache
def lacks(part: Part) -> str:
    """Why this build has no such part, and what to do about it; "" when it has it."""
    module, what, package = _NEEDS[part]
    try:
        importlib.import_module(module)
    except ImportError as error:
        why = f": {error}" if "No module named" not in str(error) else ""
        return f"this build of graylb has no {what}{why}; install {package} and build it again"
    return ""


def has(part: Part) -> bool:
    return not lacks(part)
