"""`python -m graylb.demo`, which is `make run` and `graylb demo`."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Final

import graylb

ROOT: Final = Path(graylb.__file__).resolve().parents[1]
START_PATIENCE: Final = 10.0
"""Seconds that an upstream has to begin listening."""


class DemoError(Exception):
    """Why the demo cannot run, in one line."""


def main(shipped: Path = ROOT / "config" / "demo.yaml", folder: Path = ROOT / ".build" / "demo") -> int:
    """Runs the shipped document, or the copy in `folder`, until Ctrl-C or SIGTERM; the exit status."""
    from graylb.control import prepare
    from graylb.model.problems import ConfigErrors
    from graylb.supervisor import Options, StartError, Supervisor, run

    upstreams: list[subprocess.Popen[bytes]] = []
    try:
        listen, admin = (_address(name, port) for name, port in (("GRAYLB_PORT", 8080), ("GRAYLB_ADMIN_PORT", 9900)))
        document = own_copy(shipped, folder)
        for service, part in prepare.read(document).services.items():
            # extend takes what the generator made so far also when the next one fails, so that it is stopped
            upstreams.extend(start_upstream(service, each.version, each.address) for each in part.instances)

        def tell(tree: Supervisor) -> None:
            print(_what_to_try(document, tree.listeners[0].address, tree.admin_address or admin), flush=True)

        return run(Options(document, listen=(listen,), admin=admin, drain=5.0), tell)
    except (DemoError, StartError, ConfigErrors) as error:
        print(f"graylb: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        for upstream in upstreams:
            assert upstream.stdin is not None
            upstream.stdin.close()  # which is how it is told to end
        for upstream in upstreams:
            upstream.wait()


def own_copy(shipped: Path, folder: Path) -> Path:
    """A copy of the demo document for a person to edit; it is kept, or follows the shipped one while nobody did."""
    try:
        text = shipped.read_text()
    except OSError as error:
        raise DemoError(
            f"the demo document {shipped} cannot be read: {error.strerror}; it comes with a checkout"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    copy, origin = folder / shipped.name, folder / ".shipped"
    unedited = not copy.exists() or (origin.exists() and origin.read_text() == copy.read_text())
    if unedited and (not copy.exists() or copy.read_text() != text):
        copy.write_text(text)
    if unedited:
        origin.write_text(text)
    return copy


def start_upstream(service: str, version: str, address: str) -> subprocess.Popen[bytes]:
    """Returns once it listens. Raises DemoError with its own words when it cannot."""
    host, _, port = address.rpartition(":")
    command = [sys.executable, "-m", "graylb.demo.upstream", "--host", host.strip("[]"), "--port", port]
    process = subprocess.Popen(
        [*command, "--service", service, "--version", version],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the proxy, which drains first
    )
    assert process.stdout is not None
    assert process.stderr is not None
    ready, _, _ = select.select([process.stdout], [], [], START_PATIENCE)
    if ready and process.stdout.readline():
        return process
    process.kill()
    said = process.stderr.read().decode().strip().splitlines()
    process.wait()
    raise DemoError(f"the upstream {service} {version} cannot listen on {address}: {said[-1] if said else 'no answer'}")


def _address(variable: str, default: int) -> str:
    text = os.environ.get(variable) or str(default)
    if not text.isdigit() or int(text) > 65535:
        raise DemoError(f"{variable}={text!r}: expected a port, 0 to 65535")
    return f"127.0.0.1:{text}"


def _what_to_try(document: Path, listen: str, admin: str) -> str:
    command = Path(sys.executable).with_name("graylb")
    shown = command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
    elsewhere = "" if admin == "127.0.0.1:9900" else f" --admin {admin}"
    return f"""
graylb demo: {document} is yours to edit while it runs (`make clean` begins anew)

the header rule: testers are on v2
  curl -s -H 'user-group: beta' http://{listen}/

the split: count the versions of 200 anonymous requests
  for i in $(seq 200); do curl -s http://{listen}/; done | grep -o '"version":"v."' | sort | uniq -c

the sticky user: one caller, one version
  for i in $(seq 20); do curl -s -H 'x-user-id: ann' http://{listen}/; done | grep -o '"version":"v."' | sort | uniq -c

change it while it runs, and back
  {shown} split users v1=50 v2=50{elsewhere}
  {shown} rollback users{elsewhere}
  {shown} status{elsewhere}
"""


if __name__ == "__main__":
    sys.exit(main())
