"""The main path of every inference request, for both edges. Read this page first.

    identify → limit → resolve → check → complete →
    look up → join → admit → choose → forward → store → answer

A streamed answer goes the same way, but from its first event on the caller follows it as it comes
(``broadcast``, ``relay``).

What is neither looked up nor shared nor stored, and has a place at once, is passed on in one object
(``direct``); as soon as anything unusual happens, it is an exchange like all others.

Nothing here awaits: each step decides, starts what must be waited for, and is called again when
that has happened. An edge hands in a complete request and gets one answer through its caller, now
or later. Waiting for a place and sending stand in ``forward``; the state of one request in
``exchange``, and when it is given up in ``deadlines``; what is asked of the cache in ``lookup``;
who may see what in ``auth`` and ``services``, and how much of it in ``limits``.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sluice_api.call import Call, Item
from sluice_api.errors import ApiError
from sluice_api.routes import check_task
from sluice_api.shapes.v2 import named_model
from sluice_gateway import composition, tensors
from sluice_gateway.access_log import AccessLog
from sluice_gateway.auth import Authenticator, Tenant
from sluice_gateway.broadcast import Broadcast, Live
from sluice_gateway.cache import Hit, ResponseCache
from sluice_gateway.claim import NOT_MINE, Claim, life_seconds, worth_leasing
from sluice_gateway.coalesce import Flights, Result
from sluice_gateway.computation import Computation
from sluice_gateway.deadlines import Deadlines
from sluice_gateway.direct import Direct, why_direct
from sluice_gateway.exchange import Exchange
from sluice_gateway.forward import Rebound
from sluice_gateway.head import Head
from sluice_gateway.idempotency import Pending, Repeats, Running
from sluice_gateway.keys import Keyring
from sluice_gateway.lookup import Lookup
from sluice_gateway.metrics import ServiceSeries
from sluice_gateway.passage import Passage
from sluice_gateway.renewal import Renewals
from sluice_gateway.request import Answer, OwnCaller, Request, bug, error_answer
from sluice_gateway.service import UNFINISHED, Service
from sluice_gateway.services import Services
from sluice_gateway.timers import TimerWheel
from sluice_gateway.worker_errors import at_caller

FALLS_BACK: Final = frozenset(
    ("overloaded", "starting", "model_failed", "draining", "upstream_failed")
)
"""What a canary may fail with and its caller need not know: the other revision is asked."""

RESCUED: Final = FALLS_BACK | {"deadline_exceeded", "asleep", "no_operator"}
"""Failures in whose place a stale answer is given, where there is one and it is allowed."""

ACCESS_CODES: Final = frozenset(("unauthorized", "rate_limited", "model_not_found"))
"""What is counted by tenant when it is refused."""

log = logging.getLogger(__name__)


def _nobody(tenant: str, code: str) -> None:
    """Nobody counts who may not do what."""


class Dispatcher:
    """One per process. Its parts belong to ``app``, which closes them.

    Args:
        denied: told tenant and code where somebody may not do what was asked.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        services: Services,
        keyring: Keyring,
        cache: ResponseCache,
        flights: Flights,
        wheel: TimerWheel,
        unrouted: ServiceSeries,
        access_log: AccessLog | None,
        repeats: Repeats,
        denied: Callable[[str, str], None] = _nobody,
    ) -> None:
        self._authenticator = authenticator
        self._services = services
        self._cache = cache
        self._lookup = Lookup(keyring, cache)
        self._flights = flights
        self._live: Live = {}
        self._renewals = Renewals(self.serve, cache.leases)
        self.wheel = wheel
        self._deadlines = Deadlines(wheel, self.step)
        self._unrouted = unrouted
        self._access_log = access_log
        self._repeats = repeats
        self._denied = denied

    def check(self, head: Head) -> None:
        """Raise the ApiError that a request would be refused with for its head alone."""
        if head.refusal is not None:
            raise head.refused()
        self.check_caller(head)

    def check_caller(self, head: Head) -> None:
        """Refuse who may not call at all, before the body is read. Raises ApiError."""
        try:
            self._authenticator.identify(head.authorization)
        except ApiError as error:
            self._denied("", error.code)
            raise

    def handle(self, request: Request) -> Pending | None:
        """Answer ``request``, now or later. Returns what can be cancelled, if it is later."""
        try:
            head = request.head
            if head.refusal is not None:
                raise head.refused()
            tenant = request.tenant = self._authenticator.identify(head.authorization)
            if tenant.limits is not None:
                request.limit_lines = tenant.limits.take_request(request.received)
            if head.model is not None and tensors.spoken(request):
                request = tensors.as_json(request)
            if head.idempotency_key is not None:
                admit = partial(self._admit, tenant=tenant)
                return self._repeats.handle(request, tenant, time.monotonic(), admit)
        except Exception as error:
            self._refuse(request, error)
            return None
        return self._admit(request, tenant)

    def _admit(self, request: Request, tenant: Tenant) -> Running | None:
        try:
            known = self._lookup.whole(request, tenant)
            if known is not None:
                self._answer_known(request, *known)
                return None
            service, call = self._resolve(request, tenant)
            why = why_direct(request, call, service)
            if why and service.endpoints.has_place():
                binding = service.binding
                return Direct(self, request, tenant, service, call, binding, why).start()
            exchange = self.enter(request, tenant, service, call)
        except Exception as error:
            self._refuse(request, error)
            return None
        self.step(exchange, self._complete)
        return None if exchange.done else exchange

    def serve(self, request: Request, tenant: Tenant, service: Service) -> None:
        """Answer a request of the gateway's own to ``service``, whoever else may call that."""
        route = request.head.route
        assert route is not None
        try:
            call = route.codec.parse(request.body)
            if service.tasks:
                check_task(call, service.tasks, service.name)
            exchange = self.enter(request, tenant, service, call)
        except Exception as error:
            self._refuse(request, error)
            return
        self.step(exchange, self._complete)

    # resolve, check -------------------------------------------------------------------------------

    def _answer_known(self, request: Request, service: Service, answer: Answer) -> None:
        """Exactly this was asked and answered before."""
        service.series.l1 += 1
        service.tally.cache_hits += 1
        request.caller.answer(answer)
        self.count(request, service, 200, time.monotonic())

    def _resolve(self, request: Request, tenant: Tenant) -> tuple[Service, Call]:
        """Read the body and find its service. Raises ApiError."""
        head = request.head
        assert head.route is not None
        call = head.route.codec.parse(request.body)
        name = named_model(head.model, call)
        service = self._services.resolve(name, tenant, call.task)
        if service.canary is not None:
            service = service.pick()
        if call.task not in service.tasks and service.tasks:
            check_task(call, service.tasks, service.name)
        return service, call

    def enter(self, request: Request, tenant: Tenant, service: Service, call: Call) -> Exchange:
        """Have an exchange for ``call``, which ``service`` can answer."""
        return Exchange(request, tenant, service, call, self._ended, self._deadlines)

    # complete -------------------------------------------------------------------------------------

    def _complete(self, exchange: Exchange) -> None:
        """Look up, once another service has found what the inputs lack, where they lack it."""
        call = exchange.call
        finder = None
        if call.task in UNFINISHED:
            finder = composition.finder_for(call, exchange.service)
        if finder is None:
            self._look_up(exchange)
        elif finder.indexes:
            answered = OwnCaller(partial(self.step, exchange, self._found, finder))
            question = composition.question(exchange.request, call, finder, answered)
            asked = self._admit(question, exchange.tenant)
            if asked is not None:
                exchange.stops.append(asked.cancel)
        else:
            self._completed(exchange, finder, composition.completed(call, finder, []))

    def _found(self, exchange: Exchange, finder: composition.Finder, answer: Answer) -> None:
        call = exchange.call
        try:
            found = composition.found_in(answer, call, finder)
            completed = composition.completed(call, finder, found)
        except ApiError as error:
            exchange.fail(error)  # Whichever revision would have answered: not for it to mend.
        else:
            self._completed(exchange, finder, completed)

    def _completed(self, exchange: Exchange, finder: composition.Finder, call: Call) -> None:
        retell = partial(composition.refused, call, finder)
        exchange.complete(call, retell, time.monotonic())
        self._look_up(exchange)

    # look up --------------------------------------------------------------------------------------

    def _look_up(self, exchange: Exchange) -> None:
        """Ask the cache, unless nothing can be found there."""
        directives = exchange.request.head.directives
        service, call = exchange.service, exchange.call
        why = b"no-store" if directives.no_store else service.uncacheable(call)
        if why:
            return self._bypass(exchange, why)
        self._lookup.name(exchange)
        if directives.no_cache:
            return self._looked_up(exchange, [None] * len(call.inputs))
        return self._lookup.find(exchange, partial(self.step, exchange, self._looked_up))

    def _looked_up(self, exchange: Exchange, hits: list[Hit | None]) -> None:
        exchange.cancel_lookup = None
        exchange.take_hits(hits, exchange.service.series)
        if exchange.refusal is not None:
            self._refuse_again(exchange, exchange.refusal)
        elif exchange.missing == 0:
            exchange.service.tally.cache_hits += 1
            self._answer(exchange)
        elif exchange.request.head.directives.only_if_cached:
            raise ApiError("not_cached", "No fresh answer is stored.")
        else:
            exchange.service.series.misses += exchange.missing
            self._charge(exchange)
            self._deadlines.set(exchange)
            self._join(exchange)

    def _refuse_again(self, exchange: Exchange, refusal: Hit) -> None:
        """A worker has just refused one of the inputs, and would again."""
        service, call = exchange.service, exchange.call
        service.series.refused += 1
        service.tally.cache_hits += 1
        assert refusal.refusal is not None
        raise at_caller(refusal.refusal, call, [exchange.refused_at])

    def _bypass(self, exchange: Exchange, detail: bytes) -> None:
        """Forward the caller's own body as it is; nothing is looked up, shared or stored."""
        request, service = exchange.request, exchange.service
        if request.head.directives.only_if_cached:
            told = f"An answer to this request is not stored ({detail.decode()})."
            raise ApiError("not_cached", told)
        exchange.reason = b"fwd=bypass; detail=" + detail
        service.series.bypassed += len(exchange.call.inputs)
        self._charge(exchange)
        self._deadlines.set(exchange)
        if exchange.call.stream is not None:
            self._stream_alone(exchange)
        else:
            Passage(exchange, self.step).start()

    def _charge(self, exchange: Exchange) -> None:
        """Count what is to be computed against the caller's limits, once. Raises ApiError."""
        limits = exchange.tenant.limits
        if limits is not None and not exchange.charged and not exchange.request.background:
            limits.take_inputs(exchange.missing, time.monotonic())
            exchange.charged = True

    def _stream_alone(self, exchange: Exchange) -> None:
        """Stream for this caller only."""
        exchange.hits = 0
        broadcast = Broadcast(exchange, self._cache, None, self._live)
        exchange.stops.append(broadcast.stop)
        exchange.follow(broadcast.relay, self._refused)
        broadcast.start()

    # pass on --------------------------------------------------------------------------------------

    def set_deadline(self, exchange: Exchange) -> None:
        self._deadlines.set(exchange)

    def expired(self, exchange: Exchange) -> None:
        self._deadlines.come(exchange)

    # join, forward --------------------------------------------------------------------------------

    def _join(self, exchange: Exchange) -> None:
        """Wait for each missing input's answer; compute those that nobody computes yet."""
        if exchange.service.undecided(exchange.call):
            self._compute_alone(exchange)
        elif exchange.call.stream is not None:
            self._join_stream(exchange)
        else:
            self._join_each(exchange)

    def _join_each(self, exchange: Exchange) -> None:
        """Join, for each missing input, who computes it, or compute it for all who join."""
        led: list[int] = []
        work = self._work(exchange, led)
        for index, item in enumerate(exchange.items):
            if item is None:
                leads, exchange.leave[index] = self._flights.join(
                    exchange.keys[index],
                    partial(self.step, exchange, self._arrived, index),
                    partial(work.abandoned, index),
                    work,
                )
                if leads:
                    led.append(index)
        exchange.led = led
        exchange.collapsed = exchange.missing - len(led)
        exchange.service.series.collapsed += exchange.collapsed
        if led:
            work.start()
        for index in exchange.leave if self._live else ():
            if (live := self._live.get(exchange.keys[index])) is not None:
                live.relay.hurry()

    def _work(self, exchange: Exchange, led: list[int]) -> Claim | Computation:
        """Who computes the inputs at ``led``."""
        cache, flights, leases = self._cache, self._flights, self._cache.leases
        if leases is not None and worth_leasing(exchange.service, exchange, leases):
            return Claim(exchange, led, cache, flights, leases, self.wheel, self._arrive)
        return Computation(exchange, led, cache, flights, self._arrive)

    def _join_stream(self, exchange: Exchange) -> None:
        """Follow the stream of who asks the same in the same form, or wait for what comes of it."""
        if len(exchange.keys) > 1:
            # The answers to a list come in one stream, which nobody else's can be part of.
            self._stream_alone(exchange)
            return
        key = exchange.keys[0]
        broadcast = Broadcast(exchange, self._cache, self._flights, self._live)
        leads, exchange.leave[0] = self._flights.join(
            key, partial(self.step, exchange, self._arrived, 0), broadcast.stop, broadcast
        )
        if leads:
            exchange.led = [0]
            leases = self._cache.leases
            if leases is not None and worth_leasing(exchange.service, exchange, leases):
                broadcast.lease(leases, life_seconds(exchange.service))
            exchange.follow(broadcast.relay, self._refused)
            broadcast.start()
            return
        broadcast.relay.detach()  # Another one's is followed, or waited for.
        exchange.collapsed = 1
        exchange.service.series.collapsed += 1
        live = self._live.get(key)
        if live is not None and live.suits(exchange):
            exchange.follow(live.relay, self._refused)
        elif live is not None:
            live.relay.hurry()

    def _refused(self, exchange: Exchange, error: ApiError) -> None:
        """A stream failed before its first event."""
        self.step(exchange, self._arrived, 0, error)

    # store, answer --------------------------------------------------------------------------------

    def _arrive(self, exchange: Exchange, index: int, result: Result) -> None:
        """Called by a computation for this alone with the answer to one input, or its failure."""
        self.step(exchange, self._arrived, index, result)

    def _arrived(self, exchange: Exchange, index: int, result: Result) -> None:
        """One missing input's answer is there, or its computation failed."""
        if exchange.reader is not None:
            return  # It gets what it wants through the relay.
        exchange.leave.pop(index, None)
        if isinstance(result, Item):
            exchange.put(index, result)
            if exchange.missing == 0:
                self._answer(exchange)
        elif result.status in NOT_MINE and index not in exchange.led and not exchange.stops:
            # Once: what is still missing is computed for this caller alone, with its own deadline.
            exchange.stop_waiting()
            self._compute_alone(exchange)
        else:
            raise result

    def _compute_alone(self, exchange: Exchange) -> None:
        """Compute what is missing for this caller only."""
        if exchange.call.stream is not None:
            self._stream_alone(exchange)
            return
        missing = [index for index, item in enumerate(exchange.items) if item is None]
        computation = Computation(exchange, missing, self._cache, None, self._arrive)
        exchange.stops.append(computation.stop)
        computation.start()

    def _answer(self, exchange: Exchange) -> None:
        call, head = exchange.call, exchange.request.head
        named = named_model(head.model, call)
        if exchange.renew:
            self._renewals.want(exchange, time.monotonic())
        answer = exchange.answer_items(named if named is not None else exchange.service.name)
        if exchange.hits:
            self._lookup.remember(exchange, named, answer)

    # Errors, records ----------------------------------------------------------------------------

    def step(self, exchange: Exchange, step: Callable[..., None], *arguments: Any) -> None:
        """Take one step of an exchange; whatever goes wrong in it ends the exchange."""
        if exchange.done:
            return
        try:
            step(exchange, *arguments)
        except ApiError as error:
            self._failed_with(exchange, error)
        except Exception:
            log.exception("request failed", extra={"request_id": exchange.request.id.decode()})
            exchange.fail(bug())

    def _failed_with(self, exchange: Exchange, error: ApiError) -> None:
        """Try what there is instead of an error: another revision, a stale answer."""
        error.__traceback__ = error.__context__ = None  # Their frames have it, and the exchange.
        stable = exchange.service.stable
        if isinstance(error, Rebound) and not exchange.service.removed:
            self._begin_again(exchange, exchange.service)
        elif stable is not None and error.code in FALLS_BACK and not stable.removed:
            exchange.service.series.retries["canary"] += 1
            self._begin_again(exchange, stable)
        elif error.code in RESCUED and exchange.rescue():
            self._answer(exchange)
        else:
            if error.code == "rate_limited":
                self._denied(exchange.tenant.name, error.code)
            if exchange.retell is not None:
                error = exchange.retell(error)
            exchange.fail(error)

    def _begin_again(self, exchange: Exchange, service: Service) -> None:
        """As if it were new: the revision that was to answer has changed, or fails on trial."""
        exchange.move(service)
        self.step(exchange, self._look_up)

    def _refuse(self, request: Request, error: Exception) -> None:
        """Answer a request that no service was found for."""
        if not isinstance(error, ApiError):
            log.error("request failed", exc_info=error, extra={"request_id": request.id.decode()})
            error = bug()
        if error.code in ACCESS_CODES:
            self._denied(request.tenant.name if request.tenant is not None else "", error.code)
        request.caller.answer(error_answer(error, request))
        self.count(request, None, error.status, time.monotonic())

    def _ended(self, exchange: Exchange, status: int) -> None:
        self.count(exchange.request, exchange.service, status, time.monotonic())

    def count(self, request: Request, service: Service | None, status: int, now: float) -> None:
        """The request is answered; without a service, because none was found."""
        if request.background:
            return
        seconds = now - request.received
        assert request.head.route is not None
        series = service.series if service is not None else self._unrouted
        series.answered(request.head.route.path, status, seconds)
        if self._access_log is not None:
            name = (service.namespace, service.name) if service is not None else ("", "")
            self._access_log.record(request, name, status, seconds)
