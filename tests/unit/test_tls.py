"""Certificates, their renewal, and contexts."""

from __future__ import annotations

import logging
import os
import ssl
import subprocess
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO

import pytest
import trustme

from clamsmtpd.tls import Certificate, client_context
from clamsmtpd.values import OutTls, StartError


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Files:
    """A certificate and its key, as files."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    def write(self, *names: str, part: str = "both") -> None:
        issued = self.authority.issue_cert(*names)
        if part != "key":
            self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        if part != "certificate":
            self.key.write_bytes(issued.private_key_pem.bytes())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    found = Files(tmp_path)
    found.write("mail.example.org")
    return found


def shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = None) -> ssl.SSLObject:
    """Bring a handshake to its end in memory; return the client's side. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        done = 0
        for side in sides:
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
        if done == len(sides):
            return sides[0]
    raise AssertionError("no end of a handshake")


def trusting(files: Files) -> ssl.SSLContext:
    context = ssl.create_default_context()
    files.authority.configure_trust(context)
    return context


def names(side: ssl.SSLObject) -> list[str]:
    certificate = side.getpeercert()
    assert certificate is not None
    return [str(entry[1]) for entry in certificate["subjectAltName"]]


def test_a_certificate_in_use(files: Files) -> None:
    certificate = Certificate(str(files.certificate), str(files.key))
    side = shake(certificate.context(), trusting(files), "mail.example.org")
    assert names(side) == ["mail.example.org"]
    assert side.version() == "TLSv1.3"
    assert certificate.context().minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_key_may_be_in_the_same_file(files: Files) -> None:
    files.certificate.write_bytes(files.key.read_bytes() + files.certificate.read_bytes())
    context = Certificate(str(files.certificate), None).context()
    assert shake(context, trusting(files), "mail.example.org").version() == "TLSv1.3"


def test_old_versions_of_tls_are_refused(files: Files) -> None:
    old = trusting(files)
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shake(Certificate(str(files.certificate), str(files.key)).context(), old, "mail.example.org")


def test_a_renewed_certificate_is_taken(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    certificate = Certificate(str(files.certificate), str(files.key), clock)
    before = certificate.context()
    files.write("new.example.org")
    # Not each connection looks at the disk.
    assert certificate.context() is before
    clock.now += 1.5
    assert names(shake(certificate.context(), trusting(files), "new.example.org")) == ["new.example.org"]
    assert f"a renewed certificate is in use: {files.certificate}" in caplog.text
    clock.now += 1.5
    assert certificate.context() is certificate.context()


def test_a_renewal_that_is_half_done(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    certificate = Certificate(str(files.certificate), str(files.key), clock)
    before = certificate.context()
    new = files.authority.issue_cert("new.example.org")
    files.certificate.write_bytes(new.cert_chain_pems[0].bytes())
    for _ in range(3):
        clock.now += 2
        assert certificate.context() is before
    assert len(caplog.messages) == 1
    assert "is not the key of" in caplog.text
    files.key.write_bytes(new.private_key_pem.bytes())
    clock.now += 2
    assert names(shake(certificate.context(), trusting(files), "new.example.org")) == ["new.example.org"]


def test_a_fault_is_looked_at_again_though_no_file_has_changed(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    certificate = Certificate(str(files.certificate), str(files.key), clock)
    before = certificate.context()
    whole = files.key.read_bytes()
    # As when the file was read while it was written, with the same time on it.
    files.key.write_bytes(b"half")
    clock.now += 2
    assert certificate.context() is before
    status = os.stat(files.key)
    files.key.write_bytes(whole)
    os.utime(files.key, ns=(status.st_atime_ns, status.st_mtime_ns))
    clock.now += 2
    assert certificate.context() is not before


def test_files_that_have_gone(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    certificate = Certificate(str(files.certificate), str(files.key), clock)
    files.key.unlink()
    clock.now += 2
    shake(certificate.context(), trusting(files), "mail.example.org")
    assert "No such file or directory" in caplog.text


def test_a_file_that_goes_while_it_is_loaded(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    certificate = Certificate(str(files.certificate), str(files.key), clock)
    before = certificate.context()
    files.write("new.example.org")

    def open_and_remove(name: str, mode: str) -> IO[bytes]:
        if name == str(files.key):
            files.key.unlink()
        return BytesIO()

    monkeypatch.setattr("clamsmtpd.tls.open", open_and_remove, raising=False)
    clock.now += 2
    assert certificate.context() is before
    assert "No such file or directory; give a file in PEM format" in caplog.text


def fault(certificate: Path, key: Path | None) -> str:
    with pytest.raises(StartError) as error:
        Certificate(str(certificate), str(key) if key else None)
    return str(error.value)


def test_faults_at_the_start(files: Files, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert (
        fault(missing, files.key) == f"TLSCertificate: {missing}: No such file or directory; give a file in PEM format"
    )
    assert fault(files.certificate, missing) == (
        f"TLSCertificate: {missing}: No such file or directory; give a file in PEM format"
    )
    assert fault(files.certificate, None) == (
        f"TLSCertificate: {files.certificate}: no certificate with its key; give both in PEM format"
    )
    assert fault(files.key, files.key).endswith("no certificate with its key; give both in PEM format")
    files.write("other.example.org", part="key")
    assert fault(files.certificate, files.key) == (
        f"TLSKey: {files.key}: is not the key of {files.certificate}; give the one that it was made with"
    )


def test_an_encrypted_key_asks_nobody_for_a_passphrase(files: Files) -> None:
    command = ["openssl", "pkey", "-in", str(files.key), "-aes128", "-passout", "pass:secret"]
    encrypted = subprocess.run(command, check=True, capture_output=True).stdout
    files.key.write_bytes(encrypted)
    assert fault(files.certificate, files.key) == (
        f"TLSKey: {files.key}: the key is encrypted; give one without a passphrase, for only the daemon to read"
    )


def test_whether_it_can_be_renewed(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = Certificate(str(files.certificate), str(files.key))
    assert certificate.renewable() is None
    monkeypatch.setattr("clamsmtpd.tls.os.access", lambda name, _mode: name != str(files.key))
    assert certificate.renewable() == (
        f"TLSCertificate: the daemon's user cannot read {files.key}; restart the daemon when it is renewed"
    )


# ---- with the next hop ----------------------------------------------------------------------------


def test_no_tls() -> None:
    assert client_context(OutTls.OFF) is None


@pytest.mark.parametrize("level", [OutTls.MAY, OutTls.ENCRYPT])
def test_tls_with_whoever_it_is(files: Files, level: OutTls) -> None:
    context = client_context(level)
    assert context is not None
    server = Certificate(str(files.certificate), str(files.key)).context()
    assert shake(server, context, "another.example.org").version() == "TLSv1.3"
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_tls_that_is_verified(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    files.authority.cert_pem.write_to_path(str(files.folder / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(files.folder / "ca.pem"))
    context = client_context(OutTls.VERIFY)
    assert context is not None
    server = Certificate(str(files.certificate), str(files.key)).context()
    assert names(shake(server, context, "mail.example.org")) == ["mail.example.org"]
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(server, context, "another.example.org")
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", str(files.folder))
    unknown = client_context(OutTls.VERIFY)
    assert unknown is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(server, unknown, "mail.example.org")


def test_the_certificate_of_the_next_hop_itself_can_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, key = tmp_path / "own.pem", tmp_path / "own.key"
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=mail.example.org",
    ]
    extensions = ["-addext", "basicConstraints=critical,CA:FALSE", "-addext", "subjectAltName=DNS:mail.example.org"]
    subprocess.run([*request, *extensions, "-out", str(own), "-keyout", str(key)], check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "missing"))
    context = client_context(OutTls.VERIFY)
    assert context is not None
    side = shake(Certificate(str(own), str(key)).context(), context, "mail.example.org")
    assert names(side) == ["mail.example.org"]


def test_nothing_to_verify_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    for folder in (tmp_path, tmp_path / "missing"):
        monkeypatch.setenv("SSL_CERT_DIR", str(folder))
        with pytest.raises(StartError, match=r"^OutTLS: verify: there are no certificate authorities here; install"):
            client_context(OutTls.VERIFY)
