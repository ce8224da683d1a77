"""Requests that two readers may take for something else: what a gateway must refuse.

Hand-written ones, each for a way that has desynchronised real servers (RFC 9112 §11.2), and
families that try every character where a lenient parser would skip one.
"""

from collections.abc import Callable

POST = b"POST /v1/embeddings HTTP/1.1\r\nhost: t\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
EMPTY = b"0\r\n\r\n"


def first(line: bytes, host: bytes = b"host: t\r\n") -> bytes:
    return line + b"\r\n" + host + b"content-length: 3\r\n\r\nabc"


def with_header(line: bytes) -> bytes:
    return POST + line + b"\r\ncontent-length: 3\r\n\r\nabc"


def with_length(value: bytes) -> bytes:
    return POST + b"content-length:" + value + b"\r\n\r\nabc"


def with_coding(value: bytes) -> bytes:
    return POST + b"transfer-encoding:" + value + b"\r\n\r\n" + EMPTY


def te_and_cl(value: bytes) -> bytes:
    """A length beside a coding that somebody may overlook."""
    return POST + b"content-length: 5\r\ntransfer-encoding:" + value + b"\r\n\r\n" + EMPTY


_CODINGS = (
    *(b" chunked", b" Chunked", b"\tchunked", b"  chunked  ", b" xchunked", b" chunkedx"),
    *(b" chunked,", b" ,chunked"),
    *(b" chunked, identity", b" identity, chunked", b" identity"),
    *(b" gzip, chunked", b' "chunked"', b" 'chunked'"),
    *(b" chunked;a", b" chunked;a=b", b" "),
    *(b" chu nked", b" chunked\x00", b" \x00chunked", b" \x0bchunked", b" chunked\x0b"),
    *(b" \x0cchunked", b" \xa0chunked", b" chunked\xff", b"\r\n chunked", b"\r\n\tchunked"),
    *(b" chunked\r\ntransfer-encoding: x", b" x\r\ntransfer-encoding: chunked"),
)
"""What may stand for a coding with one reader, and for none with another."""


def hidden_by_a_length(hidden: Callable[[str], bytes]) -> dict[str, bytes]:
    """By name, a request whose length says that the one behind it is part of its body.

    Args:
        hidden: makes the one behind, given the name.
    """
    made = {}
    for value in _CODINGS:
        name = f"TE {value!r} in a length"
        body = EMPTY + hidden(name)
        head = b"content-length: %d\r\ntransfer-encoding:%b\r\n\r\n" % (len(body), value)
        made[name] = POST + head + body
    return made


_FRAMING = {
    "CL and TE": POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n" + EMPTY,
    "TE and CL": POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n" + EMPTY,
    "CL 0 and TE": POST + b"content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n" + EMPTY,
    "two CL": POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "two equal CL": POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "two CL, spelled differently": POST + b"Content-Length: 3\r\ncontent-length: 5\r\n\r\nabc",
    "CL list": with_length(b" 3, 3"),
    "CL list of different ones": with_length(b" 3,4"),
    "CL plus": with_length(b" +3"),
    "CL minus": with_length(b" -3"),
    "CL hex": with_length(b" 0x3"),
    "CL float": with_length(b" 3.0"),
    "CL exponent": with_length(b" 3e0"),
    "CL underscore": with_length(b" 1_0"),
    "CL words": with_length(b" three"),
    "CL empty": with_length(b" "),
    "CL inner space": with_length(b" 1 0"),
    "CL quoted": with_length(b' "3"'),
    "CL semicolon": with_length(b" 3;3"),
    "CL vertical tab": with_length(b" 3\x0b"),
    "CL no-break space": with_length(b" \xa03"),
    "CL Arabic digit": with_length(b" \xd9\xa3"),
    "CL huge": with_length(b" 99999999999999999999999"),
    "CL 2^64": with_length(b" 18446744073709551619"),
    "TE gzip, chunked": with_coding(b" gzip, chunked"),
    "TE chunked, gzip": with_coding(b" chunked, gzip"),
    "TE chunked, identity": with_coding(b" chunked, identity"),
    "TE chunked, chunked": with_coding(b" chunked, chunked"),
    "TE identity": with_coding(b" identity"),
    "TE empty": with_coding(b""),
    "TE comma": with_coding(b" ,chunked"),
    "TE xchunked": with_coding(b" xchunked"),
    "TE chunkedx": with_coding(b" chunkedx"),
    "TE quoted": with_coding(b' "chunked"'),
    "TE parameter": with_coding(b" chunked;q=1"),
    "TE inner space": with_coding(b" chu nked"),
    "TE vertical tab": with_coding(b"\tchunked\x0b"),
    "TE form feed": with_coding(b"\x0cchunked"),
    "TE NUL": with_coding(b" chunked\x00"),
    "two TE": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + EMPTY,
    "two TE, one of them other": POST
    + b"transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n"
    + EMPTY,
    "TE folded": with_coding(b"\r\n chunked"),
    "HTTP/1.0 chunked": CHUNKED.replace(b"1.1", b"1.0") + EMPTY,
    **{
        f"CL {value!r}": with_length(b" " + value)
        for value in (
            *(b"3 3", b"3\t3", b"3,", b",3", b"3;", b"3a"),
            *(b"a3", b"3.", b".3", b"-0", b"+0", b"3L"),
            *(b"0b11", b"0o3", b"1e1", b"3\x00", b"\x003", b"3\x0c", b"3\x1f", b"3\xa0", b"3\x85"),
            *(b"\xef\xbc\x93", b"(3)", b"'3'", b"[3]", b"3 bytes", b"\\3", b"%33", b"0,3"),
        )
    },
    **{f"CL and TE {value!r}": te_and_cl(value) for value in _CODINGS},
    **{
        f"TE {value!r}": with_coding(b" " + value)
        for value in (
            *(b"chunked,", b"chunked;", b"chunked chunked"),
            *(b"chunked\x1f", b"chunked\xff", b"chunk"),
            *(b"'chunked'", b"(chunked)", b"[chunked]", b"x: chunked", b"deflate", b"br, chunked"),
            *(b"identity, chunked", b"chunked, x", b"\x85chunked"),
            *(b"\xa0chunked", b"cow", b"*", b","),
        )
    },
}  # fmt: skip

_LINES = {
    "space before colon": POST + b"content-length : 3\r\n\r\nabc",
    "tab before colon": POST + b"content-length\t: 3\r\n\r\nabc",
    "space before TE's colon": POST + b"transfer-encoding : chunked\r\n\r\n" + EMPTY,
    "no colon": with_header(b"x"),
    "no name": with_header(b": x"),
    "space in a name": with_header(b"x y: z"),
    "letter beyond ASCII in a name": with_header(b"x\xe9: z"),
    "NUL in a name": with_header(b"x\x00y: z"),
    "obs-fold": with_header(b"x: a\r\n b"),
    "obs-fold with a tab": with_header(b"x: a\r\n\tb"),
    "fold at the start": b"POST /v1/embeddings HTTP/1.1\r\n host: t\r\n\r\n",
    "bare LF": b"POST /v1/embeddings HTTP/1.1\nhost: t\ncontent-length: 3\n\nabc",
    "bare LF after a header": POST + b"x: a\ncontent-length: 3\r\n\r\nabc",
    "bare LF at the end": POST + b"content-length: 3\r\n\nabc\r\n\r\n",
    "bare CR in a value": with_header(b"x: a\rb"),
    "bare CR before a header": POST + b"x: a\rcontent-length: 3\r\n\r\nabc",
    "CR CR LF": with_header(b"x: a\r"),
    "NUL in a value": with_header(b"x: a\x00b"),
    "control character in a value": with_header(b"x: a\x01b"),
    "DEL in a value": with_header(b"x: a\x7fb"),
    **{
        f"{bytes((char,))!r} in a name": with_header(b"x" + bytes((char,)) + b"y: z")
        for char in (*b'(),/;<=>?@[\\]{}"', *range(1, 9), 0x0B, 0x0C, 0x1F, 0x7F, 0x80, 0xA0, 0xFF)
    },
    **{
        f"{bytes((char,))!r} in a value": with_header(b"x: a" + bytes((char,)) + b"b")
        for char in (*range(2, 9), 0x0B, 0x0C, *range(0x0E, 0x20))
    },
    **{
        f"{line!r}": POST + line + b"\r\n\r\n" + EMPTY
        for line in (
            *(b"content-length\x00: 3", b"content-length\x0b: 3", b"content length: 3"),
            *(b"content-length;: 3", b"content-length\xa0: 3", b"\x00content-length: 3"),
            *(b"transfer-encoding\x00: chunked", b"transfer-encoding\x0b: chunked"),
            *(b"transfer encoding: chunked", b"(transfer-encoding): chunked", b'"te": chunked'),
            *(b"transfer-encoding\xa0: chunked", b"\x0btransfer-encoding: chunked"),
            *(b" transfer-encoding: chunked", b"\ttransfer-encoding: chunked"),
            *(b"x: y\rtransfer-encoding: chunked", b"x: y\ntransfer-encoding: chunked"),
            *(b"x: y\n\rtransfer-encoding: chunked", b"x: y\x00\r\ntransfer-encoding: chunked"),
        )
    },
}  # fmt: skip

_REQUEST_LINES = {
    "no host": first(b"POST /v1/embeddings HTTP/1.1", host=b""),
    "two hosts": with_header(b"host: u"),
    "two equal hosts": with_header(b"host: t"),
    "host list": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: t, u\r\n"),
    "host with a path": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: t/x\r\n"),
    "host with a user": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: u@t\r\n"),
    "host with a query": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: t?x\r\n"),
    "host with a bad port": first(b"POST /v1/embeddings HTTP/1.1", host=b"host: t:8o\r\n"),
    "absolute form of another host": first(b"POST http://u/v1/embeddings HTTP/1.1"),
    "absolute form of another port": first(b"POST http://t:81/v1/embeddings HTTP/1.1"),
    "absolute form with a user": first(b"POST http://x@t/v1/embeddings HTTP/1.1"),
    "absolute form of another scheme": first(b"POST ftp://t/v1/embeddings HTTP/1.1"),
    "authority form": first(b"POST t:80 HTTP/1.1"),
    "asterisk form": first(b"POST * HTTP/1.1"),
    "relative path": first(b"POST v1/embeddings HTTP/1.1"),
    "fragment": first(b"POST /v1/embeddings#x HTTP/1.1"),
    "path beyond ASCII": first(b"POST /v1/\xe9 HTTP/1.1"),
    "space in the path": first(b"POST /v1/ embeddings HTTP/1.1"),
    "tab for a space": first(b"POST\t/v1/embeddings HTTP/1.1"),
    "two spaces": first(b"POST  /v1/embeddings HTTP/1.1"),
    "space at the end": first(b"POST /v1/embeddings HTTP/1.1 "),
    "space before the method": first(b" POST /v1/embeddings HTTP/1.1"),
    "unknown method": first(b"PSOT /v1/embeddings HTTP/1.1"),
    "small method": first(b"post /v1/embeddings HTTP/1.1"),
    "HTTP/2.0": first(b"POST /v1/embeddings HTTP/2.0"),
    "HTTP/1.9": first(b"POST /v1/embeddings HTTP/1.9"),
    "HTTP/0.9": first(b"POST /v1/embeddings HTTP/0.9"),
    "HTTP/1.10": first(b"POST /v1/embeddings HTTP/1.10"),
    "small http": first(b"POST /v1/embeddings http/1.1"),
    "no version": first(b"POST /v1/embeddings"),
    "two content types": with_header(b"content-type: text/plain\r\ncontent-type: application/json"),
    "two authorizations": with_header(b"authorization: a\r\nauthorization: b"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    **{
        f"version {version!r}": first(b"POST /v1/embeddings " + version)
        for version in (
            *(b"HTTP/1.1.", b"HTTP/ 1.1", b"HTTP/1 .1", b"HTTP/01.1", b"HTTP/1.01", b"HTTP/1,1"),
            *(b"HTTPS/1.1", b"HTTP//1.1", b"HTTP/-1.1", b"HTTP/1.1\x00", b"HTTP/3.0", b"HTTP/1"),
            *(b"HTTP/1.", b"HTTP/.1", b"HTTP/1.1 x", b"HTTP/1.1\t", b"HTTP/1.1\x0b", b"ICAP/1.0"),
        )
    },
    **{
        f"{bytes((char,))!r} in the path": first(b"POST /v1/" + bytes((char,)) + b" HTTP/1.1")
        for char in (0, 1, 9, 0x0B, 0x0C, 0x0D, 0x1F, 0x7F, 0x80, 0xFF)
    },
    **{
        f"{bytes((char,))!r} in the host": first(
            b"POST /v1/embeddings HTTP/1.1", host=b"host: t" + bytes((char,)) + b"u\r\n"
        )
        for char in b' \t\\"<>^`{|}'
    },
}  # fmt: skip

_CHUNKS = {
    "chunk size no number": CHUNKED + b"zz\r\nabc\r\n" + EMPTY,
    "chunk size plus": CHUNKED + b"+3\r\nabc\r\n" + EMPTY,
    "chunk size minus": CHUNKED + b"-3\r\nabc\r\n" + EMPTY,
    "chunk size 0x": CHUNKED + b"0x3\r\nabc\r\n" + EMPTY,
    "chunk size with a space before": CHUNKED + b" 3\r\nabc\r\n" + EMPTY,
    "chunk size with a space after": CHUNKED + b"3 \r\nabc\r\n" + EMPTY,
    "chunk size with a tab after": CHUNKED + b"3\t\r\nabc\r\n" + EMPTY,
    "chunk size empty": CHUNKED + b"\r\nabc\r\n" + EMPTY,
    "chunk size huge": CHUNKED + b"fffffffffffffffff\r\nabc",
    "chunk size with many zeros": CHUNKED + b"0" * 40 + b"3\r\nabc\r\n" + EMPTY,
    "chunk extension": CHUNKED + b"3;a=b\r\nabc\r\n" + EMPTY,
    "chunk extension without a value": CHUNKED + b"3;\r\nabc\r\n" + EMPTY,
    "chunk extension with LF": CHUNKED + b"3;\nxx\r\nabc\r\n" + EMPTY,
    "extension of the last chunk": CHUNKED + b"3\r\nabc\r\n0;a\r\n\r\n",
    "chunk line without an end": CHUNKED + b"3" + b"a" * 100,
    "chunk too long": CHUNKED + b"2\r\nabc\r\n" + EMPTY,
    "chunk too short": CHUNKED + b"4\r\nabc\r\n" + EMPTY,
    "chunk LF": CHUNKED + b"3\nabcdefghijk\n0\n\n",
    "chunk CR": CHUNKED + b"3\rabc\r\n" + EMPTY,
    "chunk data with LF": CHUNKED + b"3\r\nabc\n" + EMPTY,
    "trailer": CHUNKED + b"0\r\nhost: x\r\n\r\n",
    "trailer that would be a length": CHUNKED + b"0\r\ncontent-length: 9\r\n\r\n",
    "the end with LF": CHUNKED + b"3\r\nabc\r\n0\n\n   ",
    **{
        f"chunk size {size!r}": CHUNKED + size + b"\r\nabc\r\n" + EMPTY
        for size in (
            *(b"3_0", b"3.0", b"3h", b"\x003", b"3\x00"),
            *(b"3\x0b", b"\x0b3", b"3,3", b'"3"', b"3 3"),
            *(b"3 ;a=b", b"3;a", b'3;a="b"', b'3;a="\n"'),
            *(b"3;a=b;c", b"3\xa0", b"\xd9\xa3", b"3L", b"3#"),
            *(b"10000000000000003", b"0x", b"-0", b"3\x7f", b"3:3", b"{3}"),
        )
    },
    **{
        f"after a chunk {end!r}": CHUNKED + b"3\r\nabc" + end + EMPTY
        for end in (b"", b"\r", b"\n\r", b"\r\r\n", b" \r\n", b"\x00\r\n", b"d\r\n")
    },
    **{
        f"last chunk {end!r}": CHUNKED + b"3\r\nabc\r\n" + end
        for end in (
            *(b"0 \r\n\r\n", b"0;a=b\r\n\r\n", b"-0\r\n\r\n"),
            *(b"0x0\r\n\r\n", b"0\r\n\n", b"0\n\r\n"),
            *(b"0\r\nx: y\r\n\r\n", b"0\r\ntransfer-encoding: chunked\r\n\r\n", b"0\r\n x\r\n\r\n"),
        )
    },
}  # fmt: skip

VECTORS = _FRAMING | _LINES | _REQUEST_LINES | _CHUNKS
"""Name → the bytes, all of them before what would be smuggled behind them."""
