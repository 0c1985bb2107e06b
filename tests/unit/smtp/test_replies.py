"""Every reply that we make up is a reply."""

from __future__ import annotations

import re

from clamsmtpd.smtp import replies
from clamsmtpd.smtp.syntax import Reply, ReplyReader

MADE_UP = {name: getattr(replies, name) for name in replies.__all__ if name.isupper() and name not in {"NAME", "WHEN"}}


def test_each_is_one_complete_line_with_the_enhanced_code_of_its_class() -> None:
    assert len(MADE_UP) > 20
    for name, text in MADE_UP.items():
        reader = ReplyReader()
        reader.feed(text)
        reply = reader.next()
        assert isinstance(reply, Reply), name
        assert reader.next() is None, name
        assert len(text) <= 512, name
        if reply.code != 354:
            assert re.match(rb"%d\.\d{1,3}\.\d{1,3} \S" % (reply.code // 100), reply.lines[0]), name


def test_of_each_it_is_said_when_it_is_given() -> None:
    assert set(replies.WHEN) == set(MADE_UP)


def test_greeting_and_hello_say_our_name() -> None:
    assert replies.greeting() == b"220 clamsmtpd.localdomain ESMTP\r\n"
    assert replies.hello() == b"250 clamsmtpd.localdomain\r\n"
    assert replies.greeting(lmtp=True) == b"220 clamsmtpd.localdomain LMTP\r\n"


def test_replies_that_say_something_of_what_was_sent() -> None:
    assert replies.chunk_taken(10**19) == b"250 2.0.0 10000000000000000000 octets received\r\n"
    assert replies.bad_attribute("b\u00e4d is no attribute") == b"501 5.5.4 b?d is no attribute\r\n"
