"""`tls` of listeners and services: certificates, whose files are read with the document and checked as OpenSSL would.

A file's text is part of the document: so a file that is broken refuses the document that names it, and one that changes
is a change of the document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator
from pydantic_core.core_schema import ValidationInfo

from graylb import builds
from graylb.model import snapshot, values
from graylb.model.base import Part
from graylb.model.problems import Path, shown
from graylb.model.snapshot import Pem
from graylb.model.values import deeper, fault

SOON = 30 * 86400
"""Seconds before its end that a certificate is warned of."""
_MARK = "-----BEGIN "


def _pem(value: Any, info: ValidationInfo) -> Pem:
    if isinstance(value, Pem):
        return value
    if not isinstance(value, str) or not value:
        raise fault("the path of a PEM file")
    if _MARK in value:
        return Pem.of("", value)
    read_file = (info.context or {}).get("read_file")
    if read_file is None:
        return Pem.of(value, "")  # of its shape only: see `unread`
    try:
        text = read_file(value)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise fault("a readable PEM file", f"file {shown(value)} cannot be read: {reason}") from None
    if not text.strip():
        raise fault("a PEM file", f"file {shown(value)} is empty")
    return Pem.of(value, text)


PemFile = Annotated[
    Pem,
    PlainValidator(_pem),
    PlainSerializer(lambda found: found.name or found.text),
    WithJsonSchema({"type": "string"}),
]
_AUTH = ("require", "optional", "none")
ClientAuth = Annotated[
    Literal["require", "optional", "none"],
    PlainValidator(values.choice(*_AUTH)),
    WithJsonSchema({"enum": list(_AUTH)}),
]


def _tls_version(value: Any) -> str:
    if (text := str(value)) not in ("1.2", "1.3") or isinstance(value, bool):
        raise fault('"1.2" or "1.3"')
    return text


TlsVersion = Annotated[
    Literal["1.2", "1.3"],
    PlainValidator(_tls_version),
    WithJsonSchema({"enum": ["1.2", "1.3", 1.2, 1.3]}),
]


class CertificatePart(Part):
    """A certificate and what is asked of the clients that it is shown to. Files are PEM, relative to the document."""

    cert: PemFile = Field(description="The server's certificate, and behind it those between it and a root.")
    key: PemFile = Field(description="The certificate's key, without a password.")
    client_ca: PemFile | None = Field(
        default=None, description="Who may sign clients' certificates. Default: none is asked for."
    )
    client_auth: ClientAuth | None = Field(
        default=None,
        description="With a `client_ca`: `require` a certificate (the default), take an `optional` one, or ask for "
        "`none`.",
    )
    min_version: TlsVersion | None = Field(default=None, description='`"1.2"` or `"1.3"`. Default: `"1.2"`.')
    ciphers: values.Filled | None = Field(
        default=None,
        description="Suites of TLS 1.2, as OpenSSL names them; those of 1.3 are always on. Default: Mozilla's "
        "intermediate set.",
    )

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if self.client_auth in ("require", "optional") and self.client_ca is None and not self._inherits():
            with deeper("client_auth"):
                raise fault("a client_ca beside it", "nobody may sign clients' certificates")
        if builds.has("tls") and not any(unread(self)):
            _try(self)
        return self

    def _inherits(self) -> bool:
        return False


class NamedCertificatePart(CertificatePart):
    """A certificate for some names; what it does not say is as the listener's `tls` has it."""

    names: Annotated[tuple[values.HostPattern, ...], values.AT_LEAST_ONE] | None = Field(
        default=None,
        description="Host names, and `*.suffix` for one more label, that clients ask for. Default: those that the "
        "certificate has.",
    )

    def _inherits(self) -> bool:
        return True


class ListenerTlsPart(CertificatePart):
    """TLS of a listener. Its own certificate is for clients that ask for no name, or for one that no other has."""

    certificates: tuple[NamedCertificatePart, ...] = Field(
        default=(), description="Certificates for other names, chosen by what the client asks for (SNI)."
    )


class OriginationPart(Part):
    """How instances are called over TLS. Files are PEM, relative to the document."""

    ca: PemFile | None = Field(
        default=None, description="Who may sign the instances' certificates. Default: the system's store."
    )
    server_name: values.HostName | None = Field(
        default=None,
        description="What to ask for (SNI) and to find in the certificate. Default: the host of each instance's "
        "address.",
    )
    cert: PemFile | None = Field(default=None, description="Our certificate, for instances that ask for one.")
    key: PemFile | None = Field(default=None, description="Its key.")
    verify: values.Bool = Field(default=True, description="`false`: whoever answers is trusted.")
    min_version: TlsVersion = Field(default="1.2", description='`"1.2"` or `"1.3"`.')

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise fault("cert and key together, or neither")
        if self.ca is not None and not self.verify:
            with deeper("ca"):
                raise fault("no ca beside verify: false", "nothing is verified")
        if builds.has("tls") and not any(unread(self)):
            _try_origination(self)
        return self


PLAIN_TLS = OriginationPart.model_construct()


def _origination(value: Any) -> Any:
    if isinstance(value, bool):
        return PLAIN_TLS if value else None
    if value is not None and not isinstance(value, dict | OriginationPart):
        raise fault("true, false, or a mapping such as {ca: FILE, server_name: HOST}")
    return value


Origination = Annotated[
    OriginationPart | None,
    BeforeValidator(_origination, json_schema_input_type=values.Bool | OriginationPart),
]


def unread(part: Part) -> Iterator[tuple[str, str]]:
    """(setting, file) of those that were not read, for want of a place that they are relative to."""
    for name in ("cert", "key", "client_ca", "ca"):
        pem = getattr(part, name, None)
        if isinstance(pem, Pem) and not pem.text:
            yield name, pem.name


def _try(part: CertificatePart) -> None:
    """What OpenSSL will not take is a fault here."""
    from graylb import _tls

    entry = {
        "cert": part.cert.text.encode(),
        "key": part.key.text.encode(),
        "client_ca": part.client_ca.text.encode() if part.client_ca is not None else None,
        "client_auth": part.client_auth,
        "min_version": part.min_version,
        "ciphers": part.ciphers,
    }
    try:
        _tls.Certificates([entry])
    except _tls.TlsError as error:
        raise _fault(part, error.part, str(error)) from None


def _try_origination(part: OriginationPart) -> None:
    from graylb import _tls

    def of(pem: Pem | None) -> bytes | None:
        return pem.text.encode() if pem is not None else None

    try:
        # verify=False: the system's store need not be read for this
        _tls.Origination(ca=of(part.ca), cert=of(part.cert), key=of(part.key), verify=False)
    except _tls.TlsError as error:
        raise _fault(part, error.part, str(error)) from None


def _fault(part: Part, name: str, why: str) -> Exception:
    value = getattr(part, name)
    where = f"file {shown(value.name)}: " if isinstance(value, Pem) and value.name else ""
    expected = {"ciphers": "names of suites as OpenSSL has them", "key": "the certificate's key in PEM"}
    return fault(expected.get(name, "certificates in PEM"), where + why, at=(name,))


# ---- building --------------------------------------------------------------------------------------------------------


def certificates(part: ListenerTlsPart | None) -> tuple[snapshot.Certificate, ...]:
    """The listener's own first."""
    if part is None:
        return ()
    return (_certificate(part, part, ()), *(_certificate(each, part, _names(each)) for each in part.certificates))


def _certificate(part: CertificatePart, own: ListenerTlsPart, names: tuple[str, ...]) -> snapshot.Certificate:
    client_ca = part.client_ca or own.client_ca
    auth = part.client_auth or (own.client_auth if part.client_ca is None else None) or "require"
    return snapshot.Certificate(
        names,
        part.cert,
        part.key,
        client_ca if auth != "none" else None,
        auth if client_ca is not None else "none",
        part.min_version or own.min_version or "1.2",
        part.ciphers or own.ciphers,
    )


def _names(part: NamedCertificatePart) -> tuple[str, ...]:
    return part.names if part.names is not None else named(part.cert)


def named(cert: Pem) -> tuple[str, ...]:
    """The host names that a certificate has."""
    if not builds.has("tls"):
        return ()
    from graylb import _tls

    return tuple(_tls.describe(cert.text.encode())[0]["names"])


def origination(part: OriginationPart | None) -> snapshot.Origination | None:
    return snapshot.Origination(**dict(part)) if part is not None else None


# ---- warnings --------------------------------------------------------------------------------------------------------


def warnings(part: Part, now: int | None) -> Iterator[tuple[Path, str]]:
    """(where in the part, what may be a mistake). now: Unix seconds; None: dates are not looked at."""
    if not builds.has("tls") or any(unread(part)):
        return
    for name in ("cert", "client_ca", "ca"):
        pem = getattr(part, name, None)
        if isinstance(pem, Pem):
            for message in _doubts(pem, now, chain=name == "cert"):
                yield (name,), message
    for index, name in enumerate(getattr(part, "names", None) or ()):
        assert isinstance(part, NamedCertificatePart)
        if not _is_for(part.cert, name):
            yield ("names", index), f"the certificate is not for {shown(name)}; it has {_listed(named(part.cert))}"
    if isinstance(part, ListenerTlsPart):
        seen: dict[str, int] = {}
        for index, each in enumerate(part.certificates):
            for path, message in warnings(each, now):
                yield ("certificates", index, *path), message
            for name in _names(each):
                if seen.setdefault(name, index) != index:
                    why = f"{shown(name)} is also that of certificates[{seen[name]}], which is the one that is shown"
                    yield ("certificates", index), why


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "no name at all"


def _is_for(cert: Pem, name: str) -> bool:
    from graylb import _tls

    return _tls.names_host(cert.text.encode(), name)


def _doubts(pem: Pem, now: int | None, *, chain: bool) -> Iterator[str]:
    from graylb import _tls

    found = _tls.describe(pem.text.encode())
    for number, each in enumerate(found):
        which = f"its certificate {number + 1} ({each['subject']})" if len(found) > 1 else "the certificate"
        if now is not None and (told := dated(each, now)):
            yield f"{which} {told}"
        if chain and each["signs_previous"] is False:
            yield f"{which} is not the issuer of the one before it: clients cannot follow the chain"


def dated(certificate: dict[str, Any], now: int) -> str:
    """What is to be said of a certificate's time; "" when it is good for a while."""
    if certificate["not_after_unix"] <= now:
        return f"has expired ({certificate['not_after']})"
    if certificate["not_before_unix"] > now:
        return f"is not valid yet (from {certificate['not_before']})"
    if (left := certificate["not_after_unix"] - now) < SOON:
        return f"expires in {left // 86400} days ({certificate['not_after']})"
    return ""
