"""The numbered messages of the soak."""

from __future__ import annotations

from soak.letters import FIELD, Letters
from tests.support.clamd import EICAR

LETTERS = Letters(1)


def test_one_message_of_each_twenty_has_a_virus_and_the_others_have_none() -> None:
    for block in range(20):
        numbers = range(block * 20, block * 20 + 20)
        infected = [number for number in numbers if LETTERS.infected(number)]
        assert len(infected) == 1
        assert [number for number in numbers if EICAR in LETTERS.text(number)] == infected


def test_the_same_seed_gives_the_same_texts_and_another_one_others() -> None:
    assert Letters(1).text(5) == LETTERS.text(5)
    assert Letters(2).text(5) != LETTERS.text(5)


def test_texts_are_of_all_sizes_most_of_them_small() -> None:
    sizes = sorted(len(LETTERS.text(number)) for number in range(500))
    assert sizes[0] < 300
    assert sizes[250] < 4000
    assert sizes[-1] > 1_000_000


def test_no_two_texts_are_the_same() -> None:
    assert len({LETTERS.text(number) for number in range(300)}) == 300


def test_a_text_is_fit_for_smtp_and_holds_what_a_filter_could_get_wrong() -> None:
    texts = [LETTERS.text(number) for number in range(300)]
    for text in texts:
        assert text.endswith(b"\r\n")
        assert not text.startswith(b".")
        bare = text.replace(b"\r\n", b"")
        assert not any(octet in bare for octet in (b"\r", b"\n", b"\0"))
        assert max(map(len, text.split(b"\r\n"))) <= 998
    assert any(b"\r\n." in text for text in texts)
    assert any(not text.isascii() for text in texts)


def test_what_must_arrive_has_the_field_at_the_end_of_the_header_section_and_is_else_the_same() -> None:
    for number in range(40):
        head, body = LETTERS.text(number).split(b"\r\n\r\n", 1)
        assert LETTERS.delivered(number) == head + b"\r\n" + FIELD + b"\r\n" + body
