"""Commands as Redis reads them: whole, encoded once, ready to be sent with others."""


def command(*words: bytes | str | int) -> bytes:
    """One command. Texts are sent as UTF-8, numbers in decimal."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        if isinstance(word, int):
            word = b"%d" % word
        elif isinstance(word, str):
            word = word.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


def get(key: bytes) -> bytes:
    return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)


def set_for(key: bytes, value: bytes, seconds: float) -> bytes:
    """Set ``key`` for ``seconds``, one millisecond at least."""
    expiry = b"%d" % (int(seconds * 1000) or 1)
    return b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (
        len(key),
        key,
        len(value),
        value,
        len(expiry),
        expiry,
    )
