"""A stream of changes, cut anywhere."""

from trenchcoat_operator.kubernetes.watch import lines


def test_lines_come_whole_however_the_stream_is_cut() -> None:
    assert list(lines([b'{"a"', b":1}\n{", b'"b":2}\n\n', b"rest"])) == [b'{"a":1}', b'{"b":2}']
