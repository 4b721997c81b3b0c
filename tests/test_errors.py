from __future__ import annotations

from rcnn_ext.errors import one_line


def test_lines_are_short_enough_to_be_read():
    assert one_line("a\nb\x1b") == "a\\nb\\x1b"
    assert one_line("x" * 300 + " y") == f"{'x' * 60}... (300 characters) y"
    words = " ".join(f"column{index}" for index in range(10_000))
    line = one_line(f"first {words} last")
    assert line.startswith("first column0 column1 ")
    assert line.endswith(" column9999 last")
    assert len(line) < 3000
    assert f"({len(words) + 11 - 2500} characters)" in line
    # Lists of all that could be named are kept whole.
    assert one_line(words[:2900]) == words[:2900]
