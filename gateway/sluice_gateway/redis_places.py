"""Where Redis is, asked anew for each connection: one server, a Sentinel set's master, a cluster.

``redis_pipeline`` connects to what a place locates; ``redis_cluster`` makes a pipeline for each
node of a cluster. Talking to sentinels and reading a cluster's table is left to redis-py: neither
is on any request's way.
"""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from sluice_gateway.redis_address import ESCAPE, Address, parse_address

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
MAX_SEEDS: Final = 32

_SENTINEL: Final = "+sentinel"
_CLUSTER: Final = "+cluster"
_SENTINEL_LOGIN: Final = ("sentinel_username", "sentinel_password")
_WHERE: Final = "\0"
"""Stands for host and port in a URL."""
_ASK_SECONDS: Final = 0.5
"""For one sentinel or node to be reached, and again to answer."""


class Place(Protocol):
    """One server to be connected to.

    Attributes:
        shown: for people and logs, without credentials.
        moves: another server may have to be asked for; this one must say that it is the master.
    """

    @property
    def shown(self) -> str: ...
    @property
    def moves(self) -> bool: ...
    async def locate(self) -> Address:
        """Where it is now. Raises OSError when nobody can tell."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """A server that stays where it is."""

    address: Address
    moves: bool = False

    @property
    def shown(self) -> str:
        return self.address.shown

    async def locate(self) -> Address:
        return self.address


@dataclass(frozen=True, slots=True)
class Watched:
    """The master that sentinels know by a name.

    Attributes:
        asked: the URL of a sentinel, but for host and port; with their password, not the master's.
        like: what the master is reached with, its host and port aside.
    """

    sentinels: tuple[tuple[str, int], ...]
    master: str
    like: Address
    asked: str = field(repr=False)
    moves: bool = True

    @property
    def shown(self) -> str:
        return f"{self.master} of {_listed(self.sentinels)}/{self.like.db}"

    async def locate(self) -> Address:
        for sentinel in self.sentinels:
            try:
                told = await _ask(
                    self.asked.replace(_WHERE, _joined(*sentinel)),
                    "SENTINEL GET-MASTER-ADDR-BY-NAME",
                    self.master,
                )
            except OSError:
                continue
            if told:
                host, port = _pair(told)
                shown = f"{self.master} at {_joined(host, port)}/{self.like.db}"
                return replace(self.like, host=host, port=port, shown=shown)
        raise OSError("no sentinel knows the master")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes of a Redis Cluster by which the others are found.

    Attributes:
        like: what a node is reached with, its host and port aside.
        asked: the URL of a node, but for host and port.
    """

    seeds: tuple[tuple[str, int], ...]
    like: Address
    asked: str = field(repr=False)

    @property
    def shown(self) -> str:
        return f"cluster {_listed(self.seeds)}"

    def node(self, host: str, port: int) -> Address:
        return replace(self.like, host=host, port=port, shown=_joined(host, port))


Slots = list[tuple[int, int, tuple[str, int]]]
"""Ranges of slots, both ends included, each with the node that serves it."""


async def read_slots(cluster: Cluster, host: str, port: int) -> Slots:
    """The cluster's table as one of its nodes has it. Raises OSError when it cannot be had."""
    told = await _ask(cluster.asked.replace(_WHERE, _joined(host, port)), "CLUSTER SLOTS")
    return [_range(entry, host) for entry in told]


async def _ask(url: str, *words: str) -> Any:
    """One command on a connection of its own. Raises OSError when there is no good reply.

    In a task of its own, which only its own deadlines end: redis-py sends through
    ``asyncio.wait_for``, which before Python 3.12 loses a cancellation that comes together with its
    result, so that who waits here could not be ended; and one that comes while it connects leaves
    the connection open.
    """
    asking = asyncio.create_task(_answer(url, words), name="redis question")
    asking.add_done_callback(_look_at)
    try:
        return await asyncio.shield(asking)
    finally:
        await asyncio.wait([asking])


async def _answer(url: str, words: tuple[str, ...]) -> Any:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError

    client: Any = Redis.from_url(
        url,
        socket_connect_timeout=_ASK_SECONDS,
        socket_timeout=_ASK_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        return await client.execute_command(*words)
    except (RedisError, TimeoutError) as error:
        raise OSError(str(error)) from None
    finally:
        await client.aclose()


def _look_at(asking: "asyncio.Task[Any]") -> None:
    """What it ended with, or Python would say that nobody has asked."""
    if not asking.cancelled():
        asking.exception()


def _range(told: Any, asked: str) -> tuple[int, int, tuple[str, int]]:
    """One entry of the table; a node that does not know its own name is the one that was asked."""
    first, last, primary, *_ = told
    host, port = _pair(primary)
    return int(first), int(last), (host or asked, port)


def parse_place(url: str) -> Fixed | Watched | Cluster:
    """Read the URL of one server (see :func:`parse_address`), of a Sentinel set or of a cluster.

    ``redis+sentinel://[user:password@]host[:port],…/MASTER[/db]`` and
    ``redis+cluster://[user:password@]host[:port],…``; with ``rediss`` over TLS. Sentinels take
    ``sentinel_username`` and ``sentinel_password`` from the query. Raises ValueError, without the
    credentials in it.
    """
    scheme, _, _ = url.partition("://")
    if scheme.endswith(_SENTINEL):
        return _watched(url, scheme.removesuffix(_SENTINEL))
    if scheme.endswith(_CLUSTER):
        return _cluster(url, scheme.removesuffix(_CLUSTER))
    return Fixed(parse_address(url))


def _watched(url: str, scheme: str) -> Watched:
    split = urlsplit(url)
    master, _, db = split.path.strip("/").partition("/")
    if not master:
        raise ValueError(
            "The Redis URL names no master; needs redis+sentinel://HOST:PORT,HOST:PORT/MASTER."
        )
    options = parse_qsl(split.query, keep_blank_values=True)
    query = urlencode([(name, value) for name, value in options if name not in _SENTINEL_LOGIN])
    given = dict(options)
    user, password = (quote(given.get(name, ""), safe="") for name in _SENTINEL_LOGIN)
    like = _like(urlunsplit(split._replace(query=query)), scheme, f"/{db}" if db else "")
    login = f"{user}:{password}@" if password else ""
    asked = urlunsplit((scheme, f"{login}{_WHERE}", "", query, ""))
    return Watched(_seeds(split.netloc, SENTINEL_PORT), master, like, asked)


def _cluster(url: str, scheme: str) -> Cluster:
    split = urlsplit(url)
    if split.path.strip("/") not in ("", "0"):
        raise ValueError("The Redis URL names a database; Redis Cluster has only database 0.")
    login, at, _ = split.netloc.rpartition("@")
    like = _like(url, scheme, "")
    asked = urlunsplit((scheme, f"{login}{at}{_WHERE}", "", split.query, ""))
    return Cluster(_seeds(split.netloc, PORT), like, asked)


def _like(url: str, scheme: str, path: str) -> Address:
    """The address of any one of the servers, by the rules for a single one."""
    split = urlsplit(url)
    login, at, _ = split.netloc.rpartition("@")
    if scheme not in ("redis", "rediss"):
        raise ValueError(f"The Redis URL begins with {scheme!r}, needs redis or rediss.")
    return parse_address(urlunsplit((scheme, f"{login}{at}localhost", path, split.query, "")))


def _seeds(netloc: str, port: int) -> tuple[tuple[str, int], ...]:
    places = netloc.rpartition("@")[2].split(",")
    seeds = []
    for number, place in enumerate(places[:MAX_SEEDS], 1):
        try:
            split = urlsplit(f"//{place}")
            host, given = split.hostname, split.port
        except ValueError:
            host, given = None, None
        if not host:
            # Not told: part of a password may be taken for it.
            raise ValueError(
                f"Host {number} of the Redis URL cannot be read, needs HOST or HOST:PORT. {ESCAPE}"
            )
        seeds.append((host, given or port))
    return tuple(seeds)


def _listed(seeds: tuple[tuple[str, int], ...]) -> str:
    return ",".join(_joined(host, port) for host, port in seeds)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _pair(told: Any) -> tuple[str, int]:
    host, port = told[0], told[1]
    return host.decode() if isinstance(host, bytes) else str(host or ""), int(port)
