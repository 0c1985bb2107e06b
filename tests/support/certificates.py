"""Certificates for servers on this machine, from an authority that exists for one test run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

__all__ = ["Certificate", "make_certificate"]


@dataclass(frozen=True)
class Certificate:
    """The PEM files of a server, and of the authority that a client has to trust to accept it."""

    certificate: Path
    key: Path
    authority: Path


def make_certificate(folder: Path, *names: str) -> Certificate:
    """Write into ``folder`` a certificate for ``names``, or else for all that this machine calls itself.

    A second call makes another authority: who trusts the first does not trust what is made here.
    """
    authority = trustme.CA()
    server = authority.issue_cert(*(names or ("127.0.0.1", "::1", "localhost")))
    made = Certificate(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    server.private_key_pem.write_to_path(made.key)
    # Some servers refuse a key that others than its owner may read.
    made.key.chmod(0o600)
    made.certificate.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    authority.cert_pem.write_to_path(made.authority)
    return made
