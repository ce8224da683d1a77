"""How many files the process may have open: every connection is one.

Shells and container runtimes often allow 1,024 at first and far more on demand, so the gateway asks
for more when it starts. Used by ``app``.
"""

import resource
from typing import Final

KEPT: Final = 256
"""For everything but connections: sockets that listen, logs, Redis, the watch of a cluster."""


def connections(wanted: int) -> int:
    """How many client connections there can be, at most ``wanted``, after asking for more files.

    As many files again are kept for connections to workers.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 2 * wanted + KEPT
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(hard, need)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - KEPT) // 2))
