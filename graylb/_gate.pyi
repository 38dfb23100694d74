"""Types of the compiled module; described in _gate.pyx."""

class Gate:
    def check(self, data: bytes) -> bool | None: ...
