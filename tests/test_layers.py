"""The folder tells the floor: every import within graylb is one that docs/architecture.md allows."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "graylb"

# The table of docs/architecture.md, by longest prefix. Everyone may import errors and the package itself (its version).
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "graylb": (),
    "graylb.errors": (),
    "graylb.builds": (),
    "graylb.grpc_health": (),
    "graylb._http1": (),
    "graylb._proxy": (),
    "graylb._fast": ("graylb._http1",),
    "graylb._grpc": ("graylb._http1",),
    "graylb._gate": ("graylb._http1",),
    "graylb._faults": (),
    "graylb._slab": (),
    "graylb._limits": ("graylb._fast",),
    "graylb._mirrors": ("graylb._faults",),
    "graylb._meter": ("graylb._grpc", "graylb._slab", "graylb._limits", "graylb._retries", "graylb._fast"),
    "graylb._mark": ("graylb._http1",),
    "graylb._retries": (),
    "graylb._memory": ("graylb._mark",),
    "graylb._marker": (
        "graylb._memory",
        "graylb._trace",
        "graylb._live",
        "graylb._mark",
        "graylb._fast",
        "graylb._http1",
    ),
    "graylb._live": (
        "graylb._mark",
        "graylb._grpc",
        "graylb._meter",
        "graylb._slab",
        "graylb._retries",
        "graylb._fast",
        "graylb._faults",
        "graylb._mirrors",
        "graylb._limits",
        "graylb._http1",
    ),
    "graylb._outliers": ("graylb._meter", "graylb._live", "graylb._slab", "graylb._fast"),
    "graylb._tls": ("graylb._live", "graylb.openssl"),
    "graylb._sockets": ("graylb._slab", "graylb._live", "graylb._tls"),
    "graylb._h2": ("graylb._live", "graylb._http1", "graylb.nghttp2"),
    "graylb._pools": ("graylb._sockets", "graylb._live", "graylb._proxy", "graylb._tls"),
    "graylb._clients": (
        "graylb._pools",
        "graylb._sockets",
        "graylb._live",
        "graylb._mark",
        "graylb._limits",
        "graylb._proxy",
    ),
    "graylb._streams": (
        "graylb._clients",
        "graylb._pools",
        "graylb._sockets",
        "graylb._live",
        "graylb._h2",
        "graylb._http1",
    ),
    "graylb._accesslog": ("graylb._live", "graylb._fast", "graylb._http1"),
    "graylb._ring": (),
    "graylb._trace": (),
    "graylb._spans": (
        "graylb._accesslog",
        "graylb._trace",
        "graylb._live",
        "graylb._fast",
        "graylb._http1",
        "graylb._retries",
    ),
    "graylb._logs": (
        "graylb._spans",
        "graylb._accesslog",
        "graylb._ring",
        "graylb._trace",
        "graylb._sockets",
        "graylb._live",
        "graylb._fast",
        "graylb._http1",
    ),
    "graylb._exchanges": (
        "graylb._logs",
        "graylb._streams",
        "graylb._clients",
        "graylb._sockets",
        "graylb._meter",
        "graylb._live",
        "graylb._limits",
        "graylb._fast",
        "graylb._http1",
    ),
    "graylb._admission": (
        "graylb._exchanges",
        "graylb._streams",
        "graylb._live",
        "graylb._limits",
        "graylb._fast",
    ),
    "graylb._attempts": (
        "graylb._logs",
        "graylb._spans",
        "graylb._retries",
        "graylb._admission",
        "graylb._clients",
        "graylb._pools",
        "graylb._sockets",
        "graylb._outliers",
        "graylb._live",
        "graylb._meter",
        "graylb._fast",
        "graylb._http1",
        "graylb._grpc",
    ),
    "graylb._detours": (
        "graylb._tunnels",
        "graylb._retries",
        "graylb._sockets",
        "graylb._live",
        "graylb._mirrors",
        "graylb._faults",
        "graylb._fast",
        "graylb._http1",
    ),
    "graylb._hedges": (
        "graylb._attempts",
        "graylb._logs",
        "graylb._retries",
        "graylb._clients",
        "graylb._outliers",
        "graylb._sockets",
        "graylb._limits",
        "graylb._live",
        "graylb._fast",
    ),
    "graylb._tunnels": ("graylb._hedges", "graylb._live", "graylb._fast"),
    "graylb._engine": (
        "graylb._detours",
        "graylb._mark",
        "graylb._marker",
        "graylb._tunnels",
        "graylb._attempts",
        "graylb._logs",
        "graylb._outliers",
        "graylb._retries",
        "graylb._streams",
        "graylb._clients",
        "graylb._pools",
        "graylb._sockets",
        "graylb._fast",
        "graylb._http1",
        "graylb._grpc",
        "graylb.grpc_health",
        "graylb._h2",
        "graylb._gate",
        "graylb._live",
        "graylb._meter",
        "graylb._slab",
        "graylb._limits",
    ),
    "graylb.model": ("graylb.model", "graylb.release", "graylb.builds", "graylb._tls"),
    "graylb.release": (
        "graylb.release",
        "graylb.model.snapshot",
        "graylb.model.snapshot_faults",
        "graylb.model.snapshot_limits",
        "graylb.model.snapshot_retries",
    ),
    "graylb._link": ("graylb._fast",),
    "graylb.layout": ("graylb._fast",),
    "graylb.rulebook": (
        "graylb.layout",
        "graylb.model.snapshot",
        "graylb.model.snapshot_faults",
        "graylb.release",
        "graylb._fast",
    ),
    "graylb.blocks": (
        "graylb.layout",
        "graylb.rulebook",
        "graylb.model.snapshot",
        "graylb.model.snapshot_faults",
        "graylb.model.snapshot_limits",
        "graylb.release",
        "graylb._fast",
        "graylb._link",
    ),
    "graylb.table": (
        "graylb.blocks",
        "graylb.layout",
        "graylb.rulebook",
        "graylb._link",
        "graylb.model.snapshot",
        "graylb.release",
        "graylb._fast",
    ),
    "graylb.explain": ("graylb.model.snapshot", "graylb.release", "graylb._fast"),
    "graylb.replay": ("graylb.model.snapshot", "graylb.release", "graylb._fast"),
    "graylb.lint": ("graylb.model.snapshot", "graylb.release", "graylb._fast", "graylb.explain"),
    # of the worker's floor only the codec of the channel, which both ends speak
    "graylb.control": (
        "graylb.control",
        "graylb.model",
        "graylb.release",
        "graylb.table",
        "graylb.proxy.channel",
        "graylb.observe",
        "graylb.builds",
        "graylb._ring",
        "graylb._tls",
    ),
    "graylb.control.api": ("graylb.control", "graylb.observe", "graylb.model", "graylb.release", "graylb.explain"),
    "graylb.control.etcd": ("graylb.control.etcd",),
    "graylb.proxy": ("graylb.proxy", "graylb._fast", "graylb._engine", "graylb._tls"),
    "graylb.observe": ("graylb.observe", "graylb._slab"),
    "graylb.listeners": ("graylb.model.snapshot",),
    "graylb.systemd": (),
    "graylb.register": ("graylb.control.etcd", "graylb.model"),
    "graylb.handover": ("graylb.listeners", "graylb.systemd"),
    "graylb.supervisor": (
        "graylb._memory",
        "graylb.control",
        "graylb.observe",
        "graylb.model.snapshot",
        "graylb.model.values",
        "graylb.listeners",
        "graylb.handover",
        "graylb.systemd",
        "graylb.builds",
    ),
    "graylb.sdk": ("graylb.sdk",),
    "graylb.cli": ("graylb",),
    "graylb.demo": ("graylb.demo", "graylb.control", "graylb.model", "graylb.supervisor"),
}
EVERYONE = ("graylb.errors",)

PURE = (
    "graylb.model",
    "graylb.release",
    "graylb.table",
    "graylb.layout",
    "graylb.rulebook",
    "graylb.blocks",
    "graylb._link",
    "graylb._fast",
    "graylb._http1",
    "graylb._grpc",
    "graylb.grpc_health",
    "graylb._proxy",
    "graylb._h2",
    "graylb.proxy.channel",
)
IO = {"asyncio", "socket", "time", "random", "secrets", "threading", "subprocess", "selectors", "uvloop", "datetime"}

CIMPORT = re.compile(r"^([ \t]*)(?:from\s+([\w.]+)\s+c?import\s+(.+)|c?import\s+([\w.]+))", re.MULTILINE)


def modules() -> dict[str, Path]:
    """Every module of the package, compiled or not, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py*")):
        if path.suffix not in (".py", ".pyx", ".pxd"):
            continue
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name + (":pxd" if path.suffix == ".pxd" else "")] = path
    return found


MODULES = modules()


def imports(path: Path, *, functions: bool = True) -> Iterator[str]:
    """Dotted names that a module imports; those for type checkers only do not count.

    functions: those within functions too, which in compiled modules are for timing loops and for start-up.
    """
    text = path.read_text()
    if path.suffix == ".py":
        yield from _python_imports(ast.parse(text))
        return
    for found in CIMPORT.finditer(text):
        indent, module, names, whole = found.groups()
        if indent and not functions:
            continue
        if whole:
            yield whole
        else:
            for name in re.split(r"[\s,()]+", names.split("#")[0]):
                yield from (f"{module}.{name}", module) if f"{module}.{name}" in MODULES else (module,)


def _python_imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module
        yield from _python_imports(node)


def within(name: str, floor: str) -> bool:
    return name == floor or name.startswith(floor + ".")


def floor_of(name: str) -> str:
    return max((floor for floor in MAY_IMPORT if within(name, floor)), key=len)


def test_there_is_something_to_look_at() -> None:
    assert {"graylb.supervisor", "graylb.proxy.worker", "graylb.model.documents", "graylb._fast"} <= MODULES.keys()


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_floor_may(name: str) -> None:
    own = name.removesuffix(":pxd")
    allowed = (*MAY_IMPORT[floor_of(own)], *EVERYONE, own)
    for imported in imports(MODULES[name]):
        if within(imported, "graylb") and imported != "graylb":
            assert any(within(imported, floor) for floor in allowed), f"{own} imports {imported}"


@pytest.mark.parametrize("name", [name for name in MODULES if any(within(name, floor) for floor in PURE)])
def test_pure_floors_have_no_clock_no_chance_and_no_sockets(name: str) -> None:
    assert not IO & {imported.partition(".")[0] for imported in imports(MODULES[name], functions=False)}


def test_every_floor_is_in_the_tour_of_the_source() -> None:
    tour = (ROOT / "docs" / "architecture.md").read_text()
    for floor in MAY_IMPORT.keys() - {"graylb", "graylb.demo"}:
        path = floor.replace(".", "/")
        assert any(f"`{path}{end}`" in tour for end in ("/", ".py", ".pyx")), f"{floor} is not in docs/architecture.md"


def loaded_by(module: str) -> set[str]:
    """Top-level names of everything that importing a module loads, in a fresh interpreter."""
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_workers_load_nothing_of_the_control_plane() -> None:
    loaded = loaded_by("graylb.proxy.worker")
    assert "graylb._engine" in loaded
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {
        "pydantic",
        "pydantic_core",
        "fastapi",
        "starlette",
        "uvicorn",
        "yaml",
        "typer",
        "rich",
        "watchfiles",
        "grpc",
        "google",
        "etcd3",
    }
    assert not any(within(name, floor) for name in loaded for floor in ("graylb.control", "graylb.model", "graylb.cli"))


def test_nobody_but_services_uses_the_sdk() -> None:
    for name, path in MODULES.items():
        if not within(name.removesuffix(":pxd"), "graylb.sdk"):
            assert not any(within(imported, "graylb.sdk") for imported in imports(path)), name


def test_a_command_line_that_needs_little_loads_little() -> None:
    tops = {name.partition(".")[0] for name in loaded_by("graylb.cli.app")}
    assert not tops & {"pydantic", "fastapi", "uvicorn", "uvloop", "yaml", "watchfiles", "grpc", "google", "etcd3"}
    assert not any(name.startswith("graylb._") for name in loaded_by("graylb.cli.app"))
    tops = {name.partition(".")[0] for name in loaded_by("graylb.register")}
    assert not tops & {"pydantic", "grpc", "google", "etcd3"}
    assert loaded_by("graylb") & {"graylb._fast", "typer"} == set()
