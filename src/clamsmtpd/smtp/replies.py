"""Every reply that we make up ourselves, in one place.

Each is one line, with the enhanced status code of RFC 3463 where the basic code allows one
(RFC 2034 section 4: not in the greeting, not in the reply to HELO or EHLO, not with 3xx).
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "ALREADY_SECURE",
    "ARGUMENT_NOT_ALLOWED",
    "BDAT_LENGTH_UNKNOWN",
    "BDAT_WITH_MORE",
    "BINARY_NEEDS_BDAT",
    "BINARY_NOT_AVAILABLE",
    "CANNOT_STORE",
    "CHUNKS_BEGUN",
    "CHUNK_REFUSED_BEFORE",
    "CLIENT_LEFT",
    "CLIENT_TIMED_OUT",
    "COMMAND_REFUSED",
    "COMMAND_TOO_LONG",
    "COMMAND_UNKNOWN",
    "DECEPTIVE_END",
    "FORBIDDEN_OCTET",
    "FORGERY_BOUNCED",
    "HELLO_FIRST",
    "IN_TRANSACTION",
    "LOOP",
    "MAIL_FIRST",
    "NAME",
    "NEXT_HOP_CONFUSED",
    "NEXT_HOP_INSECURE",
    "NEXT_HOP_LOST",
    "NEXT_HOP_LOST_MESSAGE",
    "NEXT_HOP_UNREACHABLE",
    "NO_RECIPIENTS",
    "NO_RECIPIENTS_LMTP",
    "ONE_RECIPIENT",
    "OVERSIZE_BOUNCED",
    "OVERSIZE_DEFERRED",
    "PROXY_REFUSED",
    "SCAN_FAILED",
    "SHUTTING_DOWN",
    "START_INPUT",
    "START_TLS",
    "TOO_LARGE",
    "TOO_MANY_CONNECTIONS",
    "TOO_MANY_ERRORS",
    "TURNED_AWAY",
    "VIRUS_BOUNCED",
    "VIRUS_DROPPED",
    "WHEN",
    "WRONG_HELLO",
    "XCLIENT_REFUSED",
    "bad_attribute",
    "chunk_taken",
    "greeting",
    "hello",
]

#: The name we go by in the greeting and in the reply to HELO and EHLO. Were it the host's own, an MTA
#: on the same host would believe that it talks to itself and call it a mail loop.
NAME = b"clamsmtpd.localdomain"

START_TLS = b"220 2.0.0 Ready to start TLS\r\n"
START_INPUT = b"354 End data with <CR><LF>.<CR><LF>\r\n"

VIRUS_DROPPED = b"250 2.0.0 Virus found; message discarded\r\n"
VIRUS_BOUNCED = b"550 5.7.1 Virus found; message refused\r\n"

OVERSIZE_BOUNCED = b"552 5.3.4 Message is larger than the virus scanner takes\r\n"
# Not 4.3.4, the code of a message that is too large: RFC 3463 section 3.4 has it as a permanent error only. The message
# can be taken once somebody has changed a limit, which is what 4.3.5 says: it waits for the configuration.
OVERSIZE_DEFERRED = b"451 4.3.5 Message is larger than the virus scanner takes now; try again later\r\n"
FORGERY_BOUNCED = b"550 5.6.0 Message holds too many header fields that only this filter may add\r\n"

SCAN_FAILED = b"451 4.3.0 Virus scan not possible now; try again later\r\n"
# RFC 3463 section 3.4: the system is not accepting messages now.
TURNED_AWAY = b"451 4.3.2 Virus scan not possible in time now; try again later\r\n"
CANNOT_STORE = b"451 4.3.1 Message cannot be stored now; try again later\r\n"
CLIENT_LEFT = b"451 4.4.2 Connection closed before the reply to the message; nothing delivered\r\n"
NEXT_HOP_LOST_MESSAGE = b"451 4.4.2 Connection to the next hop was lost; try again later\r\n"
TOO_LARGE = b"552 5.3.4 Message is larger than the next hop takes\r\n"
DECEPTIVE_END = b"550 5.6.0 Message holds a dot between line ends that are not CRLF\r\n"

COMMAND_UNKNOWN = b"500 5.5.1 Command not recognized\r\n"
COMMAND_REFUSED = b"502 5.5.1 Command not available through this filter\r\n"
COMMAND_TOO_LONG = b"500 5.5.2 Line too long\r\n"
FORBIDDEN_OCTET = b"500 5.5.2 Commands end with CRLF and hold no NUL, CR or LF\r\n"
ARGUMENT_NOT_ALLOWED = b"501 5.5.4 This command takes no argument\r\n"
WRONG_HELLO = b"500 5.5.1 LHLO is for LMTP, HELO and EHLO are for SMTP\r\n"
HELLO_FIRST = b"503 5.5.1 Send HELO or EHLO first\r\n"
MAIL_FIRST = b"503 5.5.1 Send MAIL first\r\n"
IN_TRANSACTION = b"503 5.5.1 Not within a transaction, and not after AUTH\r\n"
ALREADY_SECURE = b"503 5.5.1 TLS is in use already\r\n"
NO_RECIPIENTS = b"554 5.5.1 No valid recipients\r\n"
# RFC 2033 section 4.2 names this code.
NO_RECIPIENTS_LMTP = b"503 5.5.1 No valid recipients\r\n"
# RFC 5321 section 4.5.3.1.10: the client sends the others in another transaction.
ONE_RECIPIENT = b"452 4.5.3 One recipient a message; send the message again for the others\r\n"
BDAT_WITH_MORE = b"501 5.5.4 BDAT takes a length and LAST, and nothing else\r\n"
BINARY_NEEDS_BDAT = b"503 5.5.1 BODY=BINARYMIME goes with BDAT only\r\n"
BINARY_NOT_AVAILABLE = b"555 5.5.4 BODY=BINARYMIME is not offered here\r\n"
CHUNKS_BEGUN = b"503 5.5.1 Not between the chunks of a message\r\n"
CHUNK_REFUSED_BEFORE = b"503 5.5.1 A chunk of this message was refused; send RSET\r\n"
PROXY_REFUSED = b"421 4.7.0 PROXY protocol is not allowed from here; closing\r\n"
XCLIENT_REFUSED = b"550 5.7.0 XCLIENT is not allowed from here\r\n"

# RFC 5321 section 3.8: 421 may answer any command, and the connection closes behind it.
BDAT_LENGTH_UNKNOWN = b"421 4.5.4 BDAT without a length that can be read; closing\r\n"
TOO_MANY_ERRORS = b"421 4.7.0 Too many errors; closing\r\n"
SHUTTING_DOWN = b"421 4.3.2 Service shutting down; try again later\r\n"
TOO_MANY_CONNECTIONS = b"421 4.3.2 Too many connections; try again later\r\n"
NEXT_HOP_UNREACHABLE = b"421 4.4.1 Next hop cannot be reached; try again later\r\n"
NEXT_HOP_LOST = b"421 4.4.2 Connection to the next hop was lost; try again later\r\n"
NEXT_HOP_INSECURE = b"421 4.7.4 Next hop offers no TLS that is good enough; try again later\r\n"
NEXT_HOP_CONFUSED = b"421 4.3.0 Next hop gave an answer out of order; try again later\r\n"
CLIENT_TIMED_OUT = b"421 4.4.2 Timed out waiting for you; closing\r\n"
LOOP = b"421 4.4.6 Connection loops back to this filter; closing\r\n"

#: When each is given; the reference shows them with it.
WHEN: Mapping[str, str] = {
    "START_TLS": "STARTTLS, with TLSCertificate",
    "START_INPUT": "DATA, when a recipient was accepted; the next hop hears DATA after the verdict",
    "VIRUS_DROPPED": "a virus was found, and Action, or an ActionFor, is drop",
    "VIRUS_BOUNCED": "a virus was found, and Action, or an ActionFor, is bounce",
    "OVERSIZE_BOUNCED": "the message is larger than any scanner looks at, and Oversize is bounce",
    "OVERSIZE_DEFERRED": "the message is larger than any scanner looks at, and Oversize is defer",
    "FORGERY_BOUNCED": "a message holds more than 100 fields of names that only the filter may give",
    "SCAN_FAILED": "no scanner had a verdict in time, and ScanFailure is defer; or the message could not be kept in "
    "quarantine or read on this host",
    "TURNED_AWAY": "DATA or BDAT, when no scanner was there for half a minute, or so much waits for them that this "
    "message could not be judged in time",
    "CANNOT_STORE": "the text could not be written to TempDirectory: the disk is full, say",
    "CLIENT_LEFT": "the client closed its direction of the connection before the reply to its message",
    "NEXT_HOP_LOST_MESSAGE": "the next hop was lost, or fell silent, or did not answer in SMTP, after DATA",
    "TOO_LARGE": "the message is larger than the SIZE that the next hop announced",
    "DECEPTIVE_END": "a lone dot between line ends that are not CRLF, which some servers take for the end",
    "COMMAND_UNKNOWN": "a command that is not in the table of commands",
    "COMMAND_REFUSED": "a command that could lead a message past the scanner, such as BURL, or that is not available, "
    "such as STARTTLS without a certificate",
    "COMMAND_TOO_LONG": "a command line that is longer than is allowed",
    "FORBIDDEN_OCTET": "a command with NUL in it, or with a CR or LF that are no pair",
    "ARGUMENT_NOT_ALLOWED": "DATA or STARTTLS with an argument",
    "WRONG_HELLO": "LHLO by SMTP, or HELO or EHLO by LMTP",
    "HELLO_FIRST": "a command that needs HELO, EHLO or LHLO before it",
    "MAIL_FIRST": "RCPT, DATA or BDAT without a MAIL that the next hop accepted",
    "IN_TRANSACTION": "STARTTLS or XCLIENT within a transaction, or behind AUTH",
    "ALREADY_SECURE": "STARTTLS when TLS is in use",
    "NO_RECIPIENTS": "DATA or BDAT by SMTP when no recipient was accepted",
    "NO_RECIPIENTS_LMTP": "DATA or BDAT by LMTP when no recipient was accepted",
    "ONE_RECIPIENT": "a second RCPT where SMTP clients talk to an LMTP next hop",
    "BDAT_WITH_MORE": "BDAT with anything but a length and LAST",
    "BINARY_NEEDS_BDAT": "DATA after MAIL with BODY=BINARYMIME",
    "BINARY_NOT_AVAILABLE": "BODY=BINARYMIME where the next hop does not have it and CHUNKING",
    "CHUNKS_BEGUN": "another command between the chunks of a message",
    "CHUNK_REFUSED_BEFORE": "BDAT behind a chunk that was refused",
    "PROXY_REFUSED": "a PROXY header from a client that is not among TrustedClients, or without ProxyProtocol: on",
    "XCLIENT_REFUSED": "XCLIENT from a client that is not among TrustedClients",
    "BDAT_LENGTH_UNKNOWN": "BDAT whose length cannot be read: nobody knows where the next command begins",
    "TOO_MANY_ERRORS": "100 commands in a row were refused",
    "SHUTTING_DOWN": "the daemon has been told to stop, and no transaction is under way",
    "TOO_MANY_CONNECTIONS": "MaxConnections is reached, or no descriptor is left",
    "NEXT_HOP_UNREACHABLE": "nobody answers at OutAddress, or not with a greeting",
    "NEXT_HOP_LOST": "the next hop was lost, or fell silent, outside of a message's text",
    "NEXT_HOP_INSECURE": "OutTLS is encrypt or verify, and the next hop has no such TLS",
    "NEXT_HOP_CONFUSED": "the next hop said what is no SMTP reply, or a reply that nobody asked for",
    "CLIENT_TIMED_OUT": "the client was silent, or too slow, for as long as TimeOut",
    "LOOP": "the connection came from this filter itself, or with TransparentProxy was made straight to it",
}


def greeting(*, lmtp: bool = False) -> bytes:
    """Return the first line of the dialogue (RFC 5321 section 4.2, RFC 2033 section 4)."""
    return b"220 %b %b\r\n" % (NAME, b"LMTP" if lmtp else b"ESMTP")


def chunk_taken(octets: int) -> bytes:
    """Return the reply to a chunk that is not the last (RFC 3030 section 2)."""
    return b"250 2.0.0 %d octets received\r\n" % octets


def bad_attribute(why: str) -> bytes:
    """Return the reply to an XCLIENT that cannot be understood; ``why`` may hold octets of the client's."""
    return b"501 5.5.4 %b\r\n" % why.encode("ascii", "replace")


def hello() -> bytes:
    """Return the reply to HELO (RFC 5321 section 4.1.1.1)."""
    return b"250 %b\r\n" % NAME
