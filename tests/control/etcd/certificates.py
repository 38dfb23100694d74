"""Certificates for an etcd of a test."""

from __future__ import annotations

import datetime
from pathlib import Path

import trustme

from tests.control.etcd.servers import Tls


class Certificates:
    """A CA, a server's certificate for `name`, a client's for the user root, and a CA that nobody trusts."""

    def __init__(self, folder: Path, name: str) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        self.folder = folder
        self.ca = self._pem("ca", authority.cert_pem)
        self.other_ca = self._pem("other-ca", stranger.cert_pem)
        self.server = self._pair("server", authority, name)
        self.client = self._pair("client", authority, "client.test")
        self.strange = self._pair("strange", stranger, "client.test")

    def _pem(self, name: str, *blobs: trustme.Blob) -> Path:
        path = self.folder / f"{name}.pem"
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return path

    def _pair(self, name: str, authority: trustme.CA, *names: str) -> tuple[Path, Path]:
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
        made = authority.issue_cert(*names, common_name="root", not_after=expires)
        return self._pem(name, *made.cert_chain_pems), self._pem(f"{name}-key", made.private_key_pem)

    def tls(self, *, mutual: bool = False) -> Tls:
        return Tls(*self.server, self.ca, self.ca if mutual else None)
