"""Certificates for an etcd of a test."""

from __future__ import annotations

from pathlib import Path

from tests.certificates import Authority
from tests.control.etcd.servers import Tls


class Certificates:
    """A CA, a server's certificate for `name`, a client's for the user root, and a CA that nobody trusts."""

    def __init__(self, folder: Path, name: str) -> None:
        authority, stranger = Authority(), Authority("stranger")
        self.folder = folder
        self.ca = authority.write(folder)
        self.other_ca = stranger.write(folder, "other-ca")
        self.server = authority.issue(name, common="root").write(folder, "server")
        self.client = authority.issue("client.test", common="root").write(folder, "client")
        self.strange = stranger.issue("client.test", common="root").write(folder, "strange")

    def tls(self, *, mutual: bool = False) -> Tls:
        return Tls(*self.server, self.ca, self.ca if mutual else None)
