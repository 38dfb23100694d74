"""Certificates of a test: an authority, what it signs, and files of both."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate with what stands behind it, and its key; PEM."""

    cert: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """`NAME.pem` and `NAME.key`, each in one step."""
        made = folder / f"{name}.pem", folder / f"{name}.key"
        for path, text in zip(made, (self.cert, self.key), strict=True):
            fresh = path.with_suffix(f"{path.suffix}.new")
            fresh.write_bytes(text)
            fresh.replace(path)
        return made


class Authority:
    """Signs certificates. `pem`: its own. by: who signs this one; else it is a root."""

    def __init__(self, name: str = "authority", by: Authority | None = None) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        made = (
            _builder(by._name if by else self._name, self._name, self._key.public_key(), None)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        )
        self.pem = made.sign(by._key if by else self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        self._chain = self.pem if by else b""

    def issue(self, *names: str, common: str | None = None, days: float | None = None) -> Pair:
        """For names (DNS, IP, mail, URI). days: from now until its end, which may be past. Default: 90."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if common else [])
        made = (
            _builder(self._name, subject, key.public_key(), days)
            .add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=not common)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
        )
        cert = made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return Pair(cert + self._chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def write(self, folder: Path, name: str = "ca") -> Path:
        path = folder / f"{name}.pem"
        path.write_bytes(self.pem)
        return path

    def client(self, *pair: Path) -> ssl.SSLContext:
        """Of a client that trusts this authority, and shows a certificate if one is given with its key."""
        context = ssl.create_default_context(cadata=self.pem.decode())
        if pair:
            context.load_cert_chain(*pair)
        return context

    def server(self, folder: Path, *names: str, clients: Authority | None = None) -> ssl.SSLContext:
        """Of a server with these names; clients: who signs the certificates that its clients have to show."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.issue(*names).write(folder, f"server-{names[0].strip('*.')}"))
        if clients is not None:
            context.load_verify_locations(cadata=clients.pem.decode())
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _builder(
    issuer: x509.Name, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: float | None
) -> x509.CertificateBuilder:
    until = datetime.datetime.now(datetime.UTC) + (90 if days is None else days) * DAY
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(until, datetime.datetime.now(datetime.UTC)) - DAY)
        .not_valid_after(until)
    )


def _name(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    if "@" in name:
        return x509.RFC822Name(name)
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name))
    return x509.DNSName(name)
