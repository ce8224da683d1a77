"""Buckets and what callers are told of them; the sums of many gateways: tests/property."""

import time

import pytest

from sluice_api.errors import ApiError, render
from sluice_api.key_file import Limits
from sluice_api.rates import Rate, parse_rate
from sluice_gateway.limits import Bucket, Sharing, TenantLimits
from sluice_gateway.shared_limits import SharedLimits

ALONE = Sharing(1)


def limits(now: float = 0.0, sharing: Sharing = ALONE, **rates: str) -> TenantLimits:
    parsed = {kind: parse_rate(text) for kind, text in rates.items()}

    def make(kind: str, rate: Rate) -> Bucket:
        return Bucket(rate, sharing, now)

    return TenantLimits("search", Limits(**parsed), make)


def lines(told: bytes) -> dict[str, str]:
    pairs = (line.partition(": ") for line in told.decode().split("\r\n") if line)
    return {name: value for name, _, value in pairs}


def test_answers_tell_what_is_left() -> None:
    found = limits(requests="60/m:90")
    assert lines(found.take_request(0.0)) == {
        "x-ratelimit-limit-requests": "90",
        "x-ratelimit-remaining-requests": "89",
        "x-ratelimit-reset-requests": "1s",
    }
    for _ in range(79):
        told = found.take_request(0.0)
    assert lines(told)["x-ratelimit-remaining-requests"] == "10"
    assert lines(told)["x-ratelimit-reset-requests"] == "1m20s"
    assert lines(found.take_request(1000.0))["x-ratelimit-remaining-requests"] == "89"


def test_a_refusal_says_when_to_come_again() -> None:
    found = limits(requests="2/s")
    found.take_request(0.0)
    found.take_request(0.0)
    with pytest.raises(ApiError, match=r"'search' has used its requests: 2/s, 2 at once") as error:
        found.take_request(0.1)
    rendered = render(error.value, path="/v1/x", request_id="r")
    told = dict(rendered.headers)
    assert rendered.status == 429
    assert told["x-should-retry"] == "true"
    assert (told["retry-after"], told["retry-after-ms"]) == ("1", "400")
    assert told["x-ratelimit-limit-requests"] == "2"
    assert told["x-ratelimit-remaining-requests"] == "0"
    assert told["x-ratelimit-reset-requests"] == "1s"
    assert found.take_request(0.5)


def test_inputs_are_counted_by_the_list() -> None:
    found = limits(inputs="10/s:100")
    found.take_inputs(100, 0.0)
    with pytest.raises(ApiError, match="its inputs") as error:
        found.take_inputs(5, 0.0)
    assert error.value.retry_after == pytest.approx(0.5)
    found.take_inputs(5, 0.5)
    with pytest.raises(ApiError, match="may have 100 computed at once") as too_many:
        found.take_inputs(101, 1000.0)
    assert too_many.value.code == "too_many_inputs"
    assert found.take_request(0.0) == b"", "requests have no limit"


def test_a_list_larger_than_the_part_of_one_gateway_is_let_in_when_the_part_is_full() -> None:
    found = limits(sharing=Sharing(4), inputs="40/s:400")
    found.take_inputs(300, 0.0)
    with pytest.raises(ApiError, match="its inputs"):
        found.take_inputs(1, 19.9)
    found.take_inputs(1, 20.2)


def test_tokens_are_charged_when_they_are_known() -> None:
    found = limits(tokens="100/s")
    found.take_inputs(1, 0.0)
    found.use_tokens(250)
    with pytest.raises(ApiError, match="its tokens") as error:
        found.take_inputs(1, 0.0)
    assert error.value.retry_after == pytest.approx(1.51)
    found.take_inputs(1, 1.6)


def test_a_gateway_holds_its_part_and_one_at_least() -> None:
    bucket = Bucket(parse_rate("1/s:10"), Sharing(4), 0.0)
    assert [bucket.take(1, 0.0) for _ in range(2)] == [0, 0]
    assert bucket.take(1, 0.0) > 0
    crowded = Bucket(parse_rate("2/m"), Sharing(50), 0.0)
    assert crowded.take(1, 0.0) == 0
    assert crowded.take(1, 0.0) > 0


def test_what_redis_tells_is_shared() -> None:
    sharing = Sharing(2)
    bucket = Bucket(parse_rate("1/s:10"), sharing, 0.0)
    sharing.is_up = True
    assert [bucket.take(1, 0.0) for _ in range(5)] == [0] * 5
    assert bucket.take(1, 0.0) > 0 and bucket.is_hungry
    assert bucket.settle(0.0) == 5
    bucket.told(7.0, 0.0)
    assert [bucket.take(1, 0.0) for _ in range(5)] == [0] * 5, "its part, of what is left"
    assert bucket.left(0.0) == 2
    assert bucket.take(1, 0.0) == pytest.approx(0.05), "there is more, once Redis was asked"
    assert bucket.settle(0.0) == 5
    bucket.told(2.0, 0.0)
    assert [bucket.take(1, 0.0) for _ in range(2)] == [0, 0]
    assert bucket.settle(0.0) == 2
    bucket.told(-3.0, 0.0)
    assert bucket.take(1, 0.0) == pytest.approx(4.05)


def test_after_an_outage_no_more_is_told_than_is_missing() -> None:
    sharing = Sharing(1)
    bucket = Bucket(parse_rate("10/s"), sharing, 0.0)
    for second in range(100):
        assert bucket.take(5, float(second)) == 0
        bucket.settle(float(second))
        bucket.not_told()
    assert bucket.settle(99.0) == 5


def test_a_bucket_that_runs_low_asks_for_more_once() -> None:
    asked = []
    sharing = Sharing(1, lambda: asked.append(1))
    bucket = Bucket(parse_rate("1/s:10"), sharing, 0.0)
    for _ in range(5):
        bucket.take(1, 0.0)
    assert asked == [] and bucket in sharing.touched
    for _ in range(20):
        bucket.take(1, 0.0)
    assert asked == [1]


def test_a_clock_that_stands_still_or_goes_back_gives_nothing() -> None:
    bucket = Bucket(parse_rate("10/s"), ALONE, 100.0)
    assert bucket.take(10, 100.0) == 0
    assert bucket.take(1, 50.0) > 0
    assert bucket.take(1, 100.0) > 0
    assert bucket.take(1, 100.1) == 0


def test_a_changed_limit_goes_on_from_what_is_left() -> None:
    shared = SharedLimits(None, gateways=1, identity="", hide=bytes, failed=print)
    before = shared.of("search", Limits(requests=parse_rate("60/m:90"), inputs=parse_rate("9/m")))
    assert before is not None and before.requests is not None
    now = time.monotonic()
    for _ in range(80):
        before.take_request(now)
    after = shared.of("search", Limits(requests=parse_rate("60/m:200")))
    assert after is not None and after.requests is not None
    assert 10 <= after.requests.left(now) < 20
    less = shared.of("search", Limits(requests=parse_rate("60/m:5")))
    assert less is not None and less.requests is not None and less.requests.left(now) == 5


def test_buckets_that_are_gone_are_not_settled() -> None:
    shared = SharedLimits(None, gateways=1, identity="", hide=bytes, failed=print)
    for number in range(5):
        limits = shared.of(f"tenant-{number}", Limits(requests=parse_rate("60/m")))
        assert limits is not None
        limits.take_request(time.monotonic())
    assert len(shared.sharing.touched) == 5
    shared.keep({"tenant-1"})
    assert len(shared.sharing.touched) == 1
