"""Equal meaning, equal revision; another answer possible, another revision."""

from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sluice_api.digests import answer_digest, revision_digest
from sluice_api.inference_service import revision_of
from sluice_api.quantities import format_duration, parse_duration
from sluice_api.service_files import parse_service
from tests.support.resources import MINIMAL

ANSWERS = st.fixed_dictionaries(
    {"uri": st.sampled_from(["hf://a/b", "python://p/x", "hf://c"])},
    optional={
        "revision": st.sampled_from(["", "main", "v2", "sha256:" + "0" * 64]),
        "task": st.sampled_from(["auto", "embeddings", "zero-shot"]),
        "dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
        "maxInputTokens": st.one_of(st.just("auto"), st.integers(1, 512)),
    },
)
DEVICE = st.fixed_dictionaries({}, optional={"device": st.sampled_from(["cpu", "gpu"])})
DURATION = st.integers(1000, 3_600_000).map(lambda ms: ms / 1000)


@st.composite
def _irrelevant(draw: st.DrawFn) -> dict[str, Any]:
    """Sections that cannot change an answer."""
    seconds = draw(DURATION)
    spellings = [format_duration(seconds), f"{round(seconds * 1000) % 90_000 + 1000}ms"]
    return {
        "scaling": {"minReplicas": draw(st.integers(0, 3)), "idleAfter": draw(_among(spellings))},
        "cache": {"enabled": draw(st.booleans()), "ttl": draw(_among(spellings))},
        "limits": {"timeout": draw(_among(spellings)), "maxWaiting": draw(st.integers(0, 9))},
        "batching": {"maxSize": draw(st.integers(1, 64))},
        "access": {"public": draw(st.booleans())},
    }


def _among(values: list[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(values)


def _shuffled(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    names = draw(st.permutations(sorted(value)))
    return {name: _shuffled(draw, value[name]) for name in names}


def _revision(model: dict[str, Any], hardware: dict[str, Any], rest: dict[str, Any]) -> str:
    resource = deepcopy(MINIMAL)
    resource["spec"] = {"model": model, "hardware": hardware, **rest}
    return revision_of(parse_service(resource, "test"))


def _meaning(model: dict[str, Any], hardware: dict[str, Any]) -> tuple[Any, ...]:
    defaults = {"revision": "", "task": "auto", "dtype": "auto", "maxInputTokens": "auto"}
    return (*sorted((defaults | model).items()), hardware.get("device", "cpu"))


@given(ANSWERS, DEVICE, _irrelevant(), ANSWERS, DEVICE, _irrelevant())
def test_revisions_are_equal_exactly_when_answers_must_be(
    model: dict[str, Any],
    hardware: dict[str, Any],
    rest: dict[str, Any],
    other_model: dict[str, Any],
    other_hardware: dict[str, Any],
    other_rest: dict[str, Any],
) -> None:
    same = _meaning(model, hardware) == _meaning(other_model, other_hardware)
    equal = _revision(model, hardware, rest) == _revision(other_model, other_hardware, other_rest)
    assert equal is same


@given(st.data(), ANSWERS, DEVICE, _irrelevant())
def test_order_defaults_and_spelling_do_not_matter(
    data: st.DataObject, model: dict[str, Any], hardware: dict[str, Any], rest: dict[str, Any]
) -> None:
    resource = deepcopy(MINIMAL)
    resource["spec"] = {"model": model, "hardware": hardware, **rest}
    parsed = parse_service(resource, "test")
    shuffled = parse_service(_shuffled(data.draw, resource), "test")
    spelt_out = parse_service(parsed.to_dict(), "test")
    assert parsed == shuffled == spelt_out
    assert revision_of(parsed) == revision_of(shuffled) == revision_of(spelt_out)


@given(st.integers(0, 99_999), st.integers(0, 99_999), st.integers(0, 99_999))
def test_a_duration_means_its_sum_however_it_is_spelt(hours: int, minutes: int, ms: int) -> None:
    seconds = parse_duration(f"{hours}h{minutes}m{ms}ms")
    assert seconds == (hours * 3_600_000 + minutes * 60_000 + ms) / 1000
    assert parse_duration(f"{ms}ms{minutes}m{hours}h") == seconds


PARTS = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=8)),
    max_size=6,
)


@given(PARTS, st.randoms())
def test_digests_ignore_order_and_what_is_absent(parts: dict[str, Any], random: Any) -> None:
    names = list(parts)
    random.shuffle(names)
    shuffled = {name: parts[name] for name in names}
    present = {name: value for name, value in parts.items() if value is not None}
    assert revision_digest(parts) == revision_digest(shuffled) == revision_digest(present)
    assert answer_digest(parts) == answer_digest(shuffled) == answer_digest(present)


@given(PARTS, PARTS)
def test_digests_tell_everything_else_apart(a: dict[str, Any], b: dict[str, Any]) -> None:
    def canonical(parts: dict[str, Any]) -> list[Any]:
        return sorted((k, type(v).__name__, v) for k, v in parts.items() if v is not None)

    assert (revision_digest(a) == revision_digest(b)) is (canonical(a) == canonical(b))
    # The two kinds of digest never meet, whatever they are made of.
    assert not answer_digest(a).removeprefix("sha256:").startswith(revision_digest(a))
