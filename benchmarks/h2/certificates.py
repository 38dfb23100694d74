"""Throw-away certificates of a benchmark, the same for all proxies, and clients that take any."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

KEYS = {"ecdsa": trustme.KeyType.ECDSA, "rsa": trustme.KeyType.RSA}
"""Name -> kind of key: ECDSA on P-256, RSA of 2048 bits."""

CLIENT = """\
openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = only
[only]
MinProtocol = TLSv1.3
Ciphersuites = TLS_AES_128_GCM_SHA256
Groups = X25519
"""
"""OpenSSL's configuration of every client (OPENSSL_CONF), so that all proxies negotiate the same."""


def write_certificates(work: Path) -> None:
    """For each of KEYS: NAME.crt (chain), NAME.key, NAME.pem (both); and client.cnf."""
    for name, kind in KEYS.items():
        made = trustme.CA(key_type=kind).issue_cert("localhost", "127.0.0.1", key_type=kind)
        chain, key = b"".join(each.bytes() for each in made.cert_chain_pems), made.private_key_pem.bytes()
        (work / f"{name}.crt").write_bytes(chain)
        (work / f"{name}.key").write_bytes(key)
        (work / f"{name}.pem").write_bytes(chain + key)
    (work / "client.cnf").write_text(CLIENT)


def trusting(*protocols: str) -> ssl.SSLContext:
    """A client's context that verifies nothing and offers these protocols (default: h2)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols or ("h2",)))
    return context
