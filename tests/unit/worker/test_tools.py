"""Tool calls in text: every known spelling, however it is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice_api.shapes.generated import ToolCall
from sluice_worker.generation.tools import parser_for, partial_suffix, read_calls

HERMES, MISTRAL, LLAMA = "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
BERN = '{"name": "weather", "arguments": {"city": "Bern"}}'
OSLO = '{"name": "weather", "parameters": {"city": "Oslo"}}'


def parsed(
    template: str,
    text: str,
    cuts: list[int] | None = None,
    *,
    choice: str = "auto",
    cut: bool = False,
) -> tuple[str, list[ToolCall]]:
    parser = parser_for(template, choice, {"weather"})
    assert parser is not None
    ends = [*sorted(min(cut, len(text)) for cut in cuts or []), len(text)]
    begin, found = 0, []
    for end in ends:
        found.append(parser.feed(text[begin:end]))
        begin = end
    found.append(parser.finish(cut=cut))
    return "".join(part.text for part in found), [call for part in found for call in part.calls]


def meant(calls: list[ToolCall]) -> list[tuple[str, object]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


CASES = [
    (HERMES, "Just text.", "Just text.", []),
    (HERMES, f"<tool_call>\n{BERN}\n</tool_call>", "", ["Bern"]),
    (HERMES, f"Let me see.\n<tool_call>{BERN}</tool_call>", "Let me see.\n", ["Bern"]),
    (
        HERMES,
        f"<tool_call>{BERN}</tool_call>\n<tool_call>{OSLO}</tool_call>",
        "",
        ["Bern", "Oslo"],
    ),
    (HERMES, f"<tool_call>{BERN}", "", ["Bern"]),
    (HERMES, "<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>", []),
    (HERMES, "a <tool_ b", "a <tool_ b", []),
    (MISTRAL, f"[TOOL_CALLS][{BERN}, {OSLO}]", "", ["Bern", "Oslo"]),
    (MISTRAL, f"[TOOL_CALLS] [ {BERN} ]", "", ["Bern"]),
    (MISTRAL, 'Hm.[TOOL_CALLS]weather[ARGS]{"city": "Bern"}', "Hm.", ["Bern"]),
    (
        MISTRAL,
        '[TOOL_CALLS]weather{"city":"Bern"}[TOOL_CALLS]weather{"city":"Oslo"}',
        "",
        ["Bern", "Oslo"],
    ),
    (MISTRAL, "[TOOL_CALLS]none", "[TOOL_CALLS]none", []),
    (LLAMA, OSLO, "", ["Oslo"]),
    (LLAMA, f"<|python_tag|>{OSLO}; {BERN}", "", ["Oslo", "Bern"]),
    (LLAMA, "It rains in {Bern}.", "It rains in {Bern}.", []),
    (LLAMA, '{"no": "call"}', '{"no": "call"}', []),
    (LLAMA, '{"name": "Bern", "canton": "BE"}', '{"name": "Bern", "canton": "BE"}', []),
    (LLAMA, f'{OSLO}; {{"name": "Bern"}}', f'{OSLO}; {{"name": "Bern"}}', []),
]


@pytest.mark.parametrize(("template", "text", "shown", "cities"), CASES)
def test_every_spelling_is_read(template: str, text: str, shown: str, cities: list[str]) -> None:
    found, calls = parsed(template, text)
    assert found == shown
    assert meant(calls) == [("weather", {"city": city}) for city in cities]
    assert len({call.id for call in calls}) == len(calls)
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)  # As Mistral wants it.


@given(st.sampled_from(CASES), st.lists(st.integers(0, 120), max_size=8))
def test_pieces_do_not_matter(case: tuple[str, str, str, list[str]], cuts: list[int]) -> None:
    template, text, shown, cities = case
    found, calls = parsed(template, text, cuts)
    assert found == shown
    assert meant(calls) == [("weather", {"city": city}) for city in cities]


def test_a_call_that_was_asked_for_is_bare_json() -> None:
    text, calls = parsed(HERMES, ' {"city": "Bern"}', choice="=weather")
    assert (text, meant(calls)) == ("", [("weather", {"city": "Bern"})])
    text, calls = parsed(HERMES, f"[ {OSLO}]", choice="required")
    assert (text, meant(calls)) == ("", [("weather", {"city": "Oslo"})])


WHOLE = ("weather", '{"city":"Bern"}')


@pytest.mark.parametrize(
    ("template", "choice", "text", "found"),
    [
        (HERMES, "required", f"[{BERN}", [WHOLE]),
        (HERMES, "required", f"[{BERN}, ", [WHOLE]),
        (HERMES, "required", f'[{BERN}, {{"name": "wea', [WHOLE]),
        (HERMES, "required", f'[{BERN}, {{"name": "time"', [WHOLE, ("time", "")]),
        (
            HERMES,
            "required",
            f'[{BERN}, {{"name": "time", "parameters": {{"zone": "E',
            [WHOLE, ("time", '{"zone": "E')],
        ),
        (HERMES, "required", '[{"name": "wea', []),
        (HERMES, "required", '[{"name": "we\\"a", "parameters": {', [('we"a', "{")]),
        (HERMES, "=weather", '{"city": "Be', [("weather", '{"city": "Be')]),
        (HERMES, "auto", f"<tool_call>{BERN[:-1]}", [("weather", '{"city": "Bern"}')]),
        (HERMES, "auto", f"<tool_call>{BERN[:-4]}", [("weather", '{"city": "Ber')]),
        (HERMES, "auto", '<tool_call>\n{"na', []),
        (
            MISTRAL,
            "auto",
            f"[TOOL_CALLS][{BERN}, {OSLO[:-4]}",
            [WHOLE, ("weather", '{"city": "Osl')],
        ),
        (MISTRAL, "auto", '[TOOL_CALLS]weather[ARGS]{"ci', [("weather", '{"ci')]),
        (LLAMA, "auto", f"{BERN}; {OSLO[:-4]}", [WHOLE, ("weather", '{"city": "Osl')]),
    ],
)
def test_a_call_that_is_cut_is_a_call(
    template: str, choice: str, text: str, found: list[tuple[str, str]]
) -> None:
    shown, calls = parsed(template, text, choice=choice, cut=True)
    assert shown == ""
    assert [(call.function.name, call.function.arguments) for call in calls] == found


def test_an_answer_that_is_cut_and_was_no_call_stays_text() -> None:
    assert parsed(LLAMA, '{"no": "ca', cut=True) == ('{"no": "ca', [])
    assert parsed(HERMES, "Look: <tool", cut=True) == ("Look: <tool", [])


def test_what_the_model_itself_ended_amid_a_call_stays_text() -> None:
    text = f"<tool_call>{BERN[:-4]}"
    assert parsed(HERMES, text) == (text, [])


def test_text_streams_on_until_a_call_may_begin() -> None:
    parser = parser_for(HERMES, "auto")
    assert parser is not None
    assert parser.feed("Look: <").text == "Look: "
    assert parser.feed("b> <tool").text == "<b> "
    assert parser.feed("_call>").text == ""


def test_a_template_without_a_known_spelling_has_no_parser() -> None:
    assert parser_for("{{ messages }}", "auto") is None


@pytest.mark.parametrize(
    "shown",
    [
        "<tool_call>\n<function=example>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n</tool_call>",
    ],
)
def test_a_spelling_between_known_tags_that_is_no_json_has_no_parser(shown: str) -> None:
    assert parser_for("{% if tools %}" + shown, "auto") is None


def test_what_is_no_call_is_none() -> None:
    assert read_calls('{"name": 3}') == []
    assert read_calls("[1, 2]") == []
    assert read_calls("") == []


def test_the_beginning_of_what_is_wanted_is_noticed() -> None:
    assert partial_suffix("abc", "cde") == 1
    assert partial_suffix("abcd", "cde", "bcdx") == 3
    assert partial_suffix("abc", "xyz") == 0
    assert partial_suffix("abc") == 0
