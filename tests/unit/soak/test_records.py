"""The records of the soak: what is written is read, by whomever and how often it is written."""

from __future__ import annotations

from pathlib import Path

from soak.records import Delivery, End, Heard, Recorder, Try, read


def test_what_two_programs_write_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "records"
    tried = Try(7, 2, End.TOLD, whole=True, reply="250 2.0.0 Ok\\xff", seconds=0.25)
    taken = Delivery(7, 2, "digest", 300, ["X-Virus-Scanned: \xe9"])
    clients, next_hop = Recorder(path), Recorder(path)
    next_hop.write(taken)
    clients.write(tried)
    next_hop.write(Heard(7, 2))
    clients.close()
    next_hop.close()
    assert list(read(path)) == [taken, tried, Heard(7, 2)]


def test_where_nothing_was_written_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert list(read(tmp_path / "records")) == []


def test_only_a_try_that_ended_with_a_reply_has_a_code() -> None:
    assert Try(1, 1, End.TOLD, whole=True, reply="451 4.3.0 Later", seconds=0).code == 4
    assert Try(1, 1, End.LOST, whole=True, reply="4", seconds=0).code == 0
