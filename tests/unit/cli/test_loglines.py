"""What children write, made fit for a terminal."""

from sluice_cli.up.loglines import Lines, readable


def test_lines_are_bounded_and_clean() -> None:
    lines = Lines()
    assert lines.feed(b"a\nb") == ["a"]
    assert lines.feed(b"c\r\n\n  \n") == ["bc"]
    assert lines.feed(b"10%\r50%\r100%\n") == ["100%"]
    assert lines.feed(b"\x1b[31mred\x07\n\xff\n") == ["�[31mred�", "�"]
    (long,) = lines.feed(b"x" * 10_000 + b"\n")
    assert len(long) == 2000
    assert long.endswith("…")
    for _ in range(100):
        assert lines.feed(b"y" * 10_000) == []
    assert len(lines.finish()[0]) == 2000
    assert lines.finish() == []


def test_a_record_becomes_a_line() -> None:
    record = b'{"time":"t","level":"info","logger":"x","message":"draining","delay_seconds":0.5}'
    assert readable(record) == ["INFO draining delay_seconds=0.5"]


def test_a_traceback_keeps_its_lines_and_the_last_is_the_error() -> None:
    record = b'{"level":"error","message":"failed","exception":"Traceback:\\n  a\\nValueError: b"}'
    assert readable(record) == ["ERROR failed", "Traceback:", "  a", "ValueError: b"]


def test_what_only_looks_like_a_record_is_a_line() -> None:
    assert readable(b"{not json") == ["{not json"]
    assert readable(b"") == []
