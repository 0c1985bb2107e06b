"""What the documentation is made with."""

from __future__ import annotations

import pytest

from tools.markdown import between_markers, definitions, plain, table


def test_what_would_be_markup_is_text() -> None:
    assert plain("*.exe and [a] <b> x_y `z`") == r"\*.exe and \[a\] \<b\> x\_y \`z\`"


@pytest.mark.parametrize("text", ["%i is the client", "# no heading", "- no list", "1. no list either"])
def test_a_line_does_not_begin_with_what_would_be_markup(text: str) -> None:
    assert "\\" in plain(text)[:3]
    assert plain(text).replace("\\", "") == text


def test_a_definition_is_indented_below_its_term() -> None:
    assert definitions([("**A**", "one\n\ntwo")]) == "**A**\n:   one\n\n    two"


def test_a_cell_cannot_end_early() -> None:
    assert table(["a"], [["x|y"]]).splitlines()[2] == "| x\\|y |"


def test_only_what_is_between_the_markers_is_replaced() -> None:
    begin, end = "<!-- it generated from the code: begin -->\n", "<!-- it generated from the code: end -->\n"
    assert between_markers(f"a\n{begin}old\n{end}b\n", {"it": "new"}) == f"a\n{begin}\nnew\n\n{end}b\n"
    with pytest.raises(ValueError, match="the markers for it are missing"):
        between_markers("a\n", {"it": "new"})
