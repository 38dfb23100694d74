"""`tls` of listeners and services: what is refused, with file and reason; what is warned of; where keys do not go."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from graylb import builds
from graylb.control import certificates
from graylb.model import build, documents
from graylb.model.documents import Document
from graylb.model.problems import ConfigErrors
from tests.certificates import Authority

pytestmark = pytest.mark.skipif(not builds.has("tls"), reason="this build has no TLS")
ROOT = Path(__file__).parents[2]
TEXT = """listeners: [{{address: 127.0.0.1:8443, tls: {{{listener}}}}}]
services: {{users: {{instances: [{{address: 127.0.0.1:1, version: v1}}], tls: {service}}}}}
"""


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    authority, other = Authority(), Authority("other")
    pairs = {
        "a": authority.issue("a.test"),
        "b": authority.issue("b.test", "*.c.test"),
        "old": authority.issue("old.test", days=-3),
        "soon": authority.issue("soon.test", days=3.5),
    }
    found = {f"{name}.pem": pair.cert.decode() for name, pair in pairs.items()}
    found |= {f"{name}.key": pair.key.decode() for name, pair in pairs.items()}
    found |= {"ca.pem": authority.pem.decode(), "cut.pem": found["a.pem"][:300], "empty.pem": ""}
    return found | {"chain.pem": found["a.pem"] + other.pem.decode()}


def load(files: dict[str, str], listener: str, service: str = "true") -> Document:
    def read(name: str) -> str:
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    text = TEXT.format(listener=listener, service=service)
    return documents.load(text, "x.yaml", read, now=int(time.time()))


@pytest.mark.parametrize(
    ("listener", "told"),
    [
        ("cert: no.pem, key: a.key", '.cert: file "no.pem" cannot be read: No such file or directory'),
        ("cert: a.pem, key: b.key", '.key: file "b.key": the private key is not the certificate\'s'),
        ("cert: a.key, key: a.key", '.cert: file "a.key": holds no PEM certificate'),
        ("cert: cut.pem, key: a.key", '.cert: file "cut.pem": certificate 1 cannot be read'),
        ("cert: empty.pem, key: a.key", '.cert: file "empty.pem" is empty'),
        ("cert: a.pem, key: a.pem", '.key: file "a.pem": holds no PEM private key'),
        ("cert: a.pem, key: a.key, client_ca: a.key", '.client_ca: file "a.key": holds no PEM certificate'),
        ("cert: a.pem, key: a.key, client_auth: require", ".client_auth: nobody may sign clients' certificates"),
        ("cert: a.pem, key: a.key, ciphers: ROT13", ".ciphers: 'ROT13' names no cipher that OpenSSL knows"),
        ("cert: a.pem, key: a.key, min_version: 1.1", ".min_version: got 1.1"),
        ("cert: a.pem, key: a.key, certificates: [{cert: b.pem, key: a.key}]", ".certificates[0].key: file"),
    ],
)
def test_what_cannot_be_used(files: dict[str, str], listener: str, told: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(files, listener)
    (error,) = caught.value.errors
    assert f"$.listeners[0].tls{told}" in str(error)


@pytest.mark.parametrize(
    ("service", "told"),
    [
        ("{ca: a.key}", '.ca: file "a.key": holds no PEM certificate'),
        ("{cert: a.pem}", "cert and key together, or neither"),
        ("{cert: a.pem, key: b.key}", '.key: file "b.key": the private key is not'),
        ("{ca: ca.pem, verify: false}", ".ca: nothing is verified"),
        ("yes", "true, false, or a mapping"),
    ],
)
def test_what_cannot_be_used_for_instances(files: dict[str, str], service: str, told: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(files, "cert: a.pem, key: a.key", service)
    (error,) = caught.value.errors
    assert str(error.path).startswith("$.services.users.tls")
    assert told in str(error)


@pytest.mark.parametrize(
    ("listener", "told"),
    [
        ("cert: old.pem, key: old.key", "has expired"),
        ("cert: soon.pem, key: soon.key", "expires in 3 days"),
        ("cert: chain.pem, key: a.key", "is not the issuer of the one before it"),
        (
            "cert: a.pem, key: a.key, certificates: [{cert: b.pem, key: b.key, names: [x.c.test, y.test]}]",
            'is not for "y.test"; it has b.test, *.c.test',
        ),
        (
            "cert: a.pem, key: a.key, certificates: "
            "[{cert: b.pem, key: b.key}, {cert: b.pem, key: b.key, names: [b.test]}]",
            '"b.test" is also that of certificates[0]',
        ),
        ("cert: a.pem, key: a.key", None),
    ],
)
def test_what_is_warned_of(files: dict[str, str], listener: str, told: str | None) -> None:
    warnings = [str(each) for each in load(files, listener).warnings]
    assert len(warnings) == (told is not None), warnings
    assert told is None or told in warnings[0]


def test_names_and_what_is_left_out(files: dict[str, str]) -> None:
    """A further certificate is for its own names, and otherwise as the listener has it."""
    own = "cert: a.pem, key: a.key, client_ca: ca.pem, client_auth: optional, min_version: 1.3"
    more = "{cert: b.pem, key: b.key}, {cert: b.pem, key: b.key, names: [z.c.test], client_auth: none}"
    (listener,) = build.build(load(files, f"{own}, certificates: [{more}]"), {}, 1).listeners
    first, second, third = listener.tls
    assert (first.names, second.names, third.names) == ((), ("b.test", "*.c.test"), ("z.c.test",))
    assert [each.client_auth for each in listener.tls] == ["optional", "optional", "none"]
    assert [each.client_ca for each in listener.tls] == [first.client_ca, first.client_ca, None]
    assert {each.min_version for each in listener.tls} == {"1.3"}


def test_keys_stay_out_of_what_is_told(files: dict[str, str]) -> None:
    """They go to workers in a frame of their own, and into no table, digest or answer."""
    document = load(files, "cert: a.pem, key: a.key", "{ca: ca.pem, cert: b.pem, key: b.key, server_name: up.test}")
    snapshot = build.build(document, {}, 1)
    report = certificates.report(snapshot, int(time.time()))
    assert b"PRIVATE" not in snapshot.to_bytes()
    assert "PRIVATE" not in repr(report)
    assert "PRIVATE" not in repr(snapshot)
    assert "PRIVATE" not in repr(document.to_data())
    assert b"PRIVATE" in certificates.told(snapshot, certificates.Tickets())
    assert {(each["of"], each["as"]) for each in report} == {
        ("listener 127.0.0.1:8443", "cert"),
        ("service users", "ca"),
        ("service users", "cert"),
    }


def test_asking_for_tls_in_a_build_without_it_names_the_package(tmp_path: Path, files: dict[str, str]) -> None:
    for name in ("a.pem", "a.key"):
        (tmp_path / name).write_text(files[name])
    path = tmp_path / "x.yaml"
    path.write_text(TEXT.format(listener="cert: a.pem, key: a.key", service="true"))
    code = (
        "import sys; sys.modules['graylb._tls'] = None\nfrom graylb.cli import main\n"
        f"sys.argv = ['graylb', 'check', {str(path)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert "$.listeners[0].tls: this build of graylb has no TLS" in first
    assert "$.services.users.tls: this build of graylb has no TLS" in second
    assert all("libssl-dev" in each for each in (first, second))
