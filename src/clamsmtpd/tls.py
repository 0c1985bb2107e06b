"""Certificates and contexts for TLS, with clients and with the next hop."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable

from clamsmtpd.log import describe, escape
from clamsmtpd.values import OutTls, StartError

__all__ = ["Certificate", "client_context"]

_log = logging.getLogger("clamsmtpd")

#: Seconds between two looks at the files.
_LOOK_INTERVAL = 1.0

_Signature = tuple[tuple[int, int, int], ...]


class Certificate:
    """The certificate for clients, with its key; files that are renewed are taken as they come.

    ``key`` None: it is in the file of the certificate. ``clock`` gives seconds that only grow. Raises StartError when
    the files cannot be used.
    """

    def __init__(self, certificate: str, key: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._certificate = certificate
        self._key = key or certificate
        self._clock = clock
        self._signature = self._look()
        try:
            self._context = self._load()
        except _LoadError as error:
            raise StartError(str(error)) from None
        self._next_look = clock() + _LOOK_INTERVAL
        # What was wrong with the files when they could not be taken, told once.
        self._fault = ""

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection that begins now."""
        now = self._clock()
        if now >= self._next_look:
            self._next_look = now + _LOOK_INTERVAL
            signature = self._look()
            if signature != self._signature or self._fault:
                self._renew(signature)
        return self._context

    def renewable(self) -> str | None:
        """Return a warning when the user that we are now will not be able to take renewed files."""
        for name in (self._certificate, self._key):
            if not os.access(name, os.R_OK):
                return f"TLSCertificate: the daemon's user cannot read {name}; restart the daemon when it is renewed"
        return None

    def _renew(self, signature: _Signature) -> None:
        try:
            self._context = self._load()
        except _LoadError as error:
            # A renewal writes two files, one after the other: the pair at hand goes on serving until both are there.
            if str(error) != self._fault:
                self._fault = str(error)
                _log.warning("%s; the certificate from before is still used", escape(self._fault))
            return
        self._fault = ""
        self._signature = signature
        _log.info("a renewed certificate is in use: %s", escape(self._certificate))

    def _look(self) -> _Signature:
        found = []
        for name in (self._certificate, self._key):
            try:
                status = os.stat(name)
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # RFC 8996.
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        for name in (self._certificate, self._key):
            try:
                # Python's own error does not say which of the two files it is about.
                with open(name, "rb"):
                    pass
            except OSError as error:
                raise _unreadable(name, error) from None
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
        except _EncryptedKeyError:
            raise _LoadError(
                f"TLSKey: {self._key}: the key is encrypted; give one without a passphrase, for only the daemon to read"
            ) from None
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise _LoadError(
                    f"TLSKey: {self._key}: is not the key of {self._certificate}; give the one that it was made with"
                ) from None
            raise _LoadError(
                f"TLSCertificate: {self._certificate}: no certificate with its key; give both in PEM format"
            ) from None
        except OSError as error:
            # One of the two has gone since it was opened above.
            raise _unreadable(self._certificate, error) from None
        return context


class _LoadError(Exception):
    """The files cannot be used; ``str()`` says why and what would be right."""


def _unreadable(name: str, error: OSError) -> _LoadError:
    return _LoadError(f"TLSCertificate: {name}: {describe(error)}; give a file in PEM format")


class _EncryptedKeyError(Exception):
    """A passphrase is asked for, and nobody is there to type it."""


def _no_password() -> str:
    raise _EncryptedKeyError


def client_context(level: OutTls) -> ssl.SSLContext | None:
    """Return the context for TLS with the next hop; None where there is to be none.

    Raises StartError when certificates are to be verified and there is no authority to verify them by.
    """
    if level is OutTls.OFF:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if level is not OutTls.VERIFY:
        # What is not verified keeps out those who only listen (RFC 7435).
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.load_default_certs()
    # Not "x509_ca" alone: the certificate of the next hop itself, signed by nobody else, can be trusted too.
    if not context.cert_store_stats()["x509"] and not _has_folder_of_authorities():
        raise StartError("OutTLS: verify: there are no certificate authorities here; install ca-certificates")
    return context


def _has_folder_of_authorities() -> bool:
    # Those in a folder are read when they are needed, and not counted before.
    folder: str | None = ssl.get_default_verify_paths().capath
    try:
        return bool(folder) and bool(os.listdir(folder))
    except OSError:
        return False
