"""One request and its answer: what has come in for it, what is still missing, how it ends.

``dispatch`` moves an :class:`Exchange` forward; the edge that made the request (``request``) gets
exactly one answer, or a stream that begins with one, and may cancel the exchange when its caller is
gone. Here stands the state and how an answer is put together; the decisions stand in ``dispatch``.
"""

import math
import random
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

import msgspec

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_api.routes import canonical_body
from sluice_api.shapes.generated import GenerationCodec, error_event
from sluice_gateway.auth import Tenant
from sluice_gateway.cache import Hit
from sluice_gateway.cache_status import CACHE_STATUS, hit_headers
from sluice_gateway.forward import Forward, Job
from sluice_gateway.freshness import EARLY, Use, judge, renew_early
from sluice_gateway.head import PLAIN
from sluice_gateway.metrics import ServiceSeries
from sluice_gateway.priority import Priority, granted
from sluice_gateway.relay import Reader, Relay
from sluice_gateway.request import JSON, STREAM_HEADERS, Answer, Request, error_answer, give
from sluice_gateway.service import Binding, Service
from sluice_gateway.timers import Slot
from sluice_gateway.upstream import EVENT_STREAM


class Deadlines(Protocol):
    """What gives exchanges up in time."""

    def begun(self, exchange: "Exchange") -> None: ...
    def come(self, exchange: "Exchange") -> None: ...


class Exchange(msgspec.Struct, eq=False):
    """A request for a known service.

    Attributes:
        items: per input its answer, or None while it is missing.
        raw: a worker's answer that is the caller's answer byte for byte.
        charged: its inputs were counted against its tenant's limits.
        since: from when its service's time for it counts, on the monotonic clock.
        cap: the last moment at which anybody could want the answer.
        cancel_lookup: stops the cache from calling back.
        counted: the service whose demand it has been counted as.
        retell: puts an error into the terms of a caller whose inputs were completed.
        epoch: what its keys were made with beside the binding; see ``epochs``.
        owner: in whose share of the process's memory its answers are kept.
        renew: indexes of answers from the cache that are to be computed anew.
        kept: stale answers, for the case that no new ones can be had.
        refusal: a worker's word, still good, that the input at ``refused_at`` has no answer.
        slowest: what the slowest of the answers from the cache took to compute, in seconds.
        rescued: it is answered with stale answers, because of an error.
        began: the first bytes of a stream have gone to the caller.
        deadlines: told of that, because from then on other ones count, and when its own has come.
        reader: its place in the stream that it follows.
        on_refused: told of a stream that failed before it began.
        leave: per coalesced input, how to stop waiting for it.
        urged: how urgent it is to those who wait for what it leads, where that is more.
        led: indexes of the inputs whose computation this exchange started for all who wait.
        stops: stop what is computed for this caller alone.
        forward: what is on its way to a worker for it, the last part of it if it goes in several;
            None where it waits for another's.
        expires: when the first of the items does, in seconds since the epoch.
        slot: where its deadline waits; None where it waits for nothing.
    """

    request: Request
    tenant: Tenant
    service: Service
    call: Call
    on_done: "Callable[[Exchange, int], None] | None" = None
    deadlines: "Deadlines | None" = None
    done: bool = False
    charged: bool = False
    counted: Service | None = None
    retell: Callable[[ApiError], ApiError] | None = None
    urged: Priority = Priority.LOW
    began: bool = False
    since: float = 0.0
    cap: float = 0.0
    # From here on: of one beginning; see ``move``.
    binding: Binding = None  # type: ignore[assignment]  # set at once
    slot: Slot | None = None
    cancel_lookup: Callable[[], None] | None = None
    on_refused: "Callable[[Exchange, ApiError], None] | None" = None
    keys: list[bytes] = []
    epoch: bytes = b""
    owner: bytes = b""
    renew: list[int] = []
    kept: dict[int, Hit] = {}
    refusal: Hit | None = None
    refused_at: int = 0
    rescued: bool = False
    slowest: float = 0.0
    items: list[Item | None] = []
    missing: int = 0
    raw: bytes | None = None
    reason: bytes = b""
    hits: int = 0
    collapsed: int = 0
    stale: bool = False
    stored: bool = False
    oldest: float = 0.0
    expires: float = 0.0
    worker_seconds: float | None = None
    led: list[int] = []
    leave: dict[int, Callable[[], None]] = {}
    stops: list[Callable[[], None]] = []
    forward: Forward | None = None
    relay: Relay | None = None
    reader: Reader | None = None

    def __post_init__(self) -> None:
        self.since = self.request.received
        self.cap = self._cap(self.service)
        self.binding = self.service.binding
        self.missing = len(self.call.inputs)

    def _cap(self, service: Service) -> float:
        limits = service.limits
        answering = limits.timeout_seconds
        if self.call.stream is not None:
            answering = limits.stream_timeout_seconds
        latest = self.since + limits.start_timeout_seconds + answering
        asked = self.request.head.deadline_seconds
        return latest if asked is None else min(latest, self.request.received + asked)

    @property
    def streams(self) -> bool:
        """A stream was asked for."""
        return self.call.stream is not None

    @property
    def priority(self) -> Priority:
        """Of what is computed for it."""
        request = self.request
        if request.background:
            return self.urged
        priority = granted(request.head.priority, self.tenant.priority)
        return priority if priority < self.urged else self.urged

    def __repr__(self) -> str:
        name = f"{self.service.namespace}/{self.service.name}"
        return f"<Exchange {name} {self.missing} of {len(self.call.inputs)} missing>"

    def job(
        self,
        path: bytes,
        body: bytes,
        units: int,
        read: Callable[[bytes], list[Item]],
        headers: bytes = b"",
        *,
        binding: Binding | None = None,
    ) -> Job:
        """What a worker is asked on behalf of this exchange.

        Args:
            binding: where it is not what the exchange is bound to by now.
        """
        request = self.request
        head = request.head
        if head.traceparent is not None:
            headers += b"traceparent: %b\r\n" % head.traceparent
        return Job(
            binding or self.binding,
            path,
            body,
            units,
            request.id,
            self.tenant,
            self.since,
            self.cap,
            read,
            headers,
            self.priority,
            self.call,
            request.background,
        )

    # Coming in ------------------------------------------------------------------------------------

    def complete(self, call: Call, retell: Callable[[ApiError], ApiError], now: float) -> None:
        """What the inputs lacked was found: the request is ``call``, and begins now."""
        assert call.task is not None
        self.call = call
        self.retell = retell
        self.request.body = canonical_body(call, call.inputs)
        self.stops.clear()
        self.since = now
        self.cap = self._cap(self.service)

    def take_hits(self, hits: list[Hit | None], series: ServiceSeries) -> None:
        """Fill in what the cache had, as far as it may be given now."""
        asked, now = self.request.head.directives, time.time()
        items: list[Item | None] = []
        for index, hit in enumerate(hits):
            if hit is None:
                items.append(None)
            elif asked is PLAIN and hit.ttl_seconds > hit.seconds * EARLY and hit.refusal is None:
                items.append(self._take(hit, series, now))
            else:
                items.append(self._weigh(index, hit, self._use(hit), series, now))
        self.items = items
        self.missing -= self.hits

    def _use(self, hit: Hit) -> Use:
        asked = self.request.head.directives
        return judge(hit.age_seconds, hit.ttl_seconds, self.binding.cache, asked)

    def _weigh(
        self, index: int, hit: Hit, use: Use, series: ServiceSeries, now: float
    ) -> Item | None:
        """What a hit gives to the exchange whose use is not clear at first sight."""
        if hit.refusal is not None:
            if use is Use.FRESH and self.refusal is None:
                self.refusal, self.refused_at = hit, index
            return None
        if use is Use.FRESH:
            if renew_early(hit.ttl_seconds, hit.seconds, random.random()):  # noqa: S311
                self.renew.append(index)
            return self._take(hit, series, now)
        if use is Use.STALE:
            self.renew.append(index)
            return self._take(hit, series, now)
        self.stale = True
        if use is Use.ON_ERROR:
            self.kept[index] = hit
        return None

    def _take(self, hit: Hit, series: ServiceSeries, now: float) -> Item:
        self.hits += 1
        if hit.ttl_seconds <= 0:
            series.stale += 1
        elif hit.layer == "l1":
            series.l1 += 1
        else:
            series.redis += 1
        self._age(hit, now)
        return hit.item

    def _age(self, hit: Hit, now: float) -> None:
        if hit.age_seconds > self.oldest:
            self.oldest = hit.age_seconds
        if hit.seconds > self.slowest:
            self.slowest = hit.seconds
        expires = now + hit.ttl_seconds
        if not self.expires or expires < self.expires:
            self.expires = expires

    def rescue(self) -> bool:
        """Fill in stale answers for all that is missing; False, having done nothing, if it cannot.

        What is being computed is computed on for others, and not waited for any more.
        """
        missing = [index for index, item in enumerate(self.items) if item is None]
        if self.done or self.began or not missing or not self.kept.keys() >= set(missing):
            return False
        self._let_go()
        now = time.time()
        for index in missing:
            hit = self.kept[index]
            self.put(index, hit.item)
            self._age(hit, now)
        self.rescued = True
        self.raw = None
        self.service.series.stale += len(missing)
        return True

    def move(self, service: Service) -> None:
        """Begin again with ``service``; what the other one computes for this alone is stopped.

        Answers of two revisions never meet in one, so nothing is taken along but the time.
        """
        self._let_go()
        if self.slot is not None:
            self.slot.pop(self, None)
        fresh = Exchange(self.request, self.tenant, service, self.call)
        for name in _OF_ONE_BEGINNING:
            setattr(self, name, getattr(fresh, name))
        self.service = service

    def count(self) -> None:
        """A worker of the service is needed; said once, however often it begins again."""
        if self.counted is not self.service and not self.request.background:
            self.counted = self.service
            self.service.tally.arrived()

    def use_tokens(self, tokens: int) -> None:
        """A worker computed so many for it."""
        if self.tenant.limits is not None and not self.request.background:
            self.tenant.limits.use_tokens(tokens)

    def put(self, index: int, item: Item) -> None:
        """Fill in one missing answer."""
        if self.items[index] is None:
            self.items[index] = item
            self.missing -= 1

    # Going out ------------------------------------------------------------------------------------

    def answer_items(self, model: str) -> Answer:
        """Answer with the items, all of which are there."""
        call = self.call
        if self.raw is not None and call.stream is None:
            return self.pass_on(self.raw)
        items = cast("list[Item]", self.items)
        if call.stream is not None:
            body = cast(GenerationCodec, call.codec).render_stream(call, model, items)
            answer = Answer(200, EVENT_STREAM, self._headers() + STREAM_HEADERS, body)
        else:
            answer = Answer(200, JSON, self._headers(), call.codec.render(call, model, items))
        if self.expires and self.request.background:
            answer.fresh_for = self.expires - time.time()
        self.finish(answer)
        return answer

    def pass_on(self, body: bytes) -> Answer:
        """Answer with what a worker wrote."""
        answer = Answer(200, JSON, self._headers(), body)
        self.finish(answer)
        return answer

    def fail(self, error: ApiError) -> None:
        """Answer with an error; in a stream that has begun, as its last event."""
        if self.done:
            return
        self._let_go()
        if self.began:
            self._lost(error.code)
            self._end(error.status)
            self.request.caller.break_off(error_event(error, self.request.id.decode("latin-1")))
        else:
            answer = error_answer(error, self.request)
            if self.refusal is not None:
                ttl, age = self.refusal.ttl_seconds, self.refusal.age_seconds
                answer.headers += hit_headers(ttl, age, b"", b"; detail=refused")
            self.finish(answer)

    def finish(self, answer: Answer) -> None:
        self.done = True  # Nothing else ends it meanwhile.
        self._end(give(self.request, answer))

    def fire(self) -> None:
        """Its deadline has come."""
        if self.deadlines is not None:
            self.deadlines.come(self)

    def cancel(self) -> None:
        """The caller is gone: nothing is answered, and what only it wanted is stopped."""
        if not self.done:
            self._lost("client_gone")
            self._let_go()
            self._end(499)  # As nginx logs it; never on the wire.

    # A stream -------------------------------------------------------------------------------------

    def follow(self, relay: Relay, on_refused: Callable[["Exchange", ApiError], None]) -> None:
        """Pass on what comes through ``relay``, from its beginning."""
        self.on_refused = on_refused
        self.relay = relay
        self.reader = relay.join(self)

    def begin(self, data: bytes) -> bool:
        self.began = True
        series = self.service.series
        series.streams += 1
        series.first_events.took(time.monotonic() - self.request.received)
        if self.deadlines is not None:
            self.deadlines.begun(self)
        return self.request.caller.begin(
            Answer(
                200,
                EVENT_STREAM,
                self._cache_status()
                + self.binding.header
                + STREAM_HEADERS
                + self.request.limit_lines,
                data,
            )
        )

    def send(self, data: bytes) -> bool:
        return self.request.caller.send(data)

    def over(self, error: ApiError | None) -> None:
        self.reader = None
        if error is None:
            self._end(200)
            self.request.caller.end()
        elif self.began:
            self.fail(error)
        elif self.on_refused is not None:
            self.on_refused(self, error)

    def cut_off(self, cause: str) -> None:
        """The caller takes too little of its stream: it gets no more of it, and no end."""
        if not self.done:
            self._lost(cause)
            self._let_go()
            self._end(499)
            self.request.caller.break_off(b"")

    def resume(self) -> None:
        """The caller can take more."""
        if self.reader is not None:
            self.reader.resume()

    def _lost(self, cause: str) -> None:
        if self.began:
            self.service.series.streams_cut[cause] += 1

    def _end(self, status: int) -> None:
        self.done = True
        if self.began:
            self.service.series.streams -= 1
        if self.slot is not None:  # It has waited for something.
            self.slot.pop(self, None)
            # Without these, what is left of an exchange would be cycles for the garbage collector.
            self.slot = self.relay = self.on_refused = self.forward = None
            self.stops.clear()
            self.leave.clear()
        if self.on_done is not None:
            self.on_done(self, status)

    def stop_waiting(self) -> None:
        """Leave what others compute; what only this exchange waited for is stopped."""
        leave, self.leave = self.leave, {}
        for leave_flight in leave.values():
            leave_flight()

    def _let_go(self) -> None:
        if self.reader is not None:
            self.reader.leave()
            self.reader = None
        if self.cancel_lookup is not None:
            self.cancel_lookup()
        self.stop_waiting()
        stops, self.stops = self.stops, []
        for stop in stops:
            stop()

    def _headers(self) -> bytes:
        total = (time.monotonic() - self.request.received) * 1000
        if self.worker_seconds is None or self.forward is None:
            timing = b"server-timing: total;dur=%.2f\r\n%b" % (total, self.binding.header)
        else:
            timing = b"server-timing: queue;dur=%.2f, worker;dur=%.2f, total;dur=%.2f\r\n%b" % (
                self.forward.queue_seconds * 1000,
                self.worker_seconds * 1000,
                total,
                self.binding.header,
            )
        return self._cache_status() + timing + self.request.limit_lines

    def _cache_status(self) -> bytes:
        """RFC 9211; ``detail`` says for lists how many of the inputs were found."""
        if self.reason:
            return b"%b; %b\r\n" % (CACHE_STATUS, self.reason)
        count = len(self.call.inputs)
        detail = b'; detail="%d of %d"' % (self.hits, count) if count > 1 else b""
        if self.hits == count or self.rescued:
            ttl = self.expires - time.time()
            if ttl < 0 and not detail:
                detail = b"; detail=stale-while-revalidate"
            if self.rescued:
                return b"%b; fwd=stale; ttl=%d; detail=stale-if-error\r\nage: %d\r\n" % (
                    CACHE_STATUS,
                    math.floor(ttl),
                    self.oldest,
                )
            return hit_headers(ttl, self.oldest, b"", detail)
        forwarded = b"fwd=stale" if self.stale else b"fwd=miss"
        if self.hits:
            forwarded = b"fwd=partial"
        if self.request.head.directives.no_cache:
            forwarded = b"fwd=request"
        stored = b"; stored" if self.stored else b""
        collapsed = b"; collapsed" if self.collapsed else b""
        return b"%b; %b%b%b%b\r\n" % (CACHE_STATUS, forwarded, stored, collapsed, detail)


_OF_ONE_BEGINNING: Final = Exchange.__struct_fields__[Exchange.__struct_fields__.index("binding") :]
