"""What workers tell each other in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clamsmtpd.board import BOARD_SIZE, BULLETIN_SIZE, ENTRIES, ENTRY_SIZE, Board


def boards(workers: int) -> tuple[list[Board], bytearray]:
    memory = bytearray(BOARD_SIZE * workers)
    return [Board(memoryview(memory), workers, worker) for worker in range(workers)], memory


def test_what_one_says_all_can_read() -> None:
    (first, second), _ = boards(2)
    assert second.bulletins() == [b"", b""]
    first.post(b"one")
    second.post(b"two")
    assert first.bulletins() == second.bulletins() == [b"one", b"two"]
    first.post(b"three")
    assert second.bulletins() == [b"three", b"two"]


def test_the_messages_of_each_are_there_the_latest_first() -> None:
    (first, second), _ = boards(2)
    assert list(first.notes()) == []
    for number in range(3):
        first.note(b"a%d" % number)
    second.note(b"b0")
    assert list(second.notes()) == [b"a2", b"a1", b"a0", b"b0"]


def test_the_oldest_are_forgotten() -> None:
    (board,), _ = boards(1)
    for number in range(ENTRIES + 10):
        board.note(b"%d" % number)
    notes = list(board.notes())
    assert len(notes) == ENTRIES
    assert notes[0] == b"%d" % (ENTRIES + 9)
    assert notes[-1] == b"10"


def test_what_is_too_long_is_left_out() -> None:
    (board,), _ = boards(1)
    board.post(b"before")
    board.post(b"x" * (BULLETIN_SIZE - 15))
    assert board.bulletins() == [b"before"]
    board.note(b"x" * (ENTRY_SIZE - 15))
    assert list(board.notes()) == []
    board.post(b"x" * (BULLETIN_SIZE - 16))
    board.note(b"y" * (ENTRY_SIZE - 16))
    assert len(board.bulletins()[0]) == BULLETIN_SIZE - 16
    assert [len(note) for note in board.notes()] == [ENTRY_SIZE - 16]


def test_a_message_that_is_being_written_is_passed_over() -> None:
    (board,), memory = boards(1)
    board.note(b"first")
    board.note(b"second")
    start = BULLETIN_SIZE + 8
    memory[start] += 1
    assert list(board.notes()) == [b"second"]


def test_a_text_that_is_being_written_is_none() -> None:
    (board,), memory = boards(1)
    board.post(b"whole")
    memory[0] += 1
    assert board.bulletins() == [b""]
    # Its writer has died, and another has its place.
    board.post(b"again")
    assert board.bulletins() == [b"again"]


def test_one_that_has_died_says_nothing_of_the_present_any_more() -> None:
    (first, second), _ = boards(2)
    first.post(b"here")
    first.note(b"a message")
    second.forget(0)
    assert second.bulletins() == [b"", b""]
    assert list(second.notes()) == [b"a message"]


@given(st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=100)), max_size=30))
def test_nobody_writes_into_the_place_of_another(said: list[tuple[int, bytes]]) -> None:
    all_boards, _ = boards(3)
    last = [b"", b"", b""]
    notes: list[list[bytes]] = [[], [], []]
    for worker, text in said:
        all_boards[worker].post(text)
        all_boards[worker].note(text)
        last[worker] = text
        notes[worker].insert(0, text)
    assert all_boards[0].bulletins() == last
    assert list(all_boards[0].notes()) == [note for one in notes for note in one]
