"""The keys file: what it says, and every mistake with line, field and fix, never with a key."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sluice_api.api_keys import make_key
from sluice_api.key_file import (
    KeyEntry,
    KeyFile,
    KeyFileError,
    Limits,
    TenantEntry,
    read_key_file,
    write_key_file,
)
from sluice_api.rates import parse_rate

HASH = "ab" * 32
WHOLE = f"""\
tenants:
- name: search
  namespaces: [search, search-dev]
  services: [minilm, shared/reranker, lab/*]
  limits: {{requests: 20/s:100, inputs: 6000/m, tokens: 100000/m}}
  priority: high
  weight: 5
  keys:
  - id: a1
    sha256: {HASH}
    name: ann's laptop
    expires: 2027-01-31T18:00:00+01:00
  - {{id: a2, sha256: {"cd" * 32}, expires: 2027-02-01}}
- name: support
  namespaces: [support]
"""


def test_everything_that_can_be_said() -> None:
    search, support = read_key_file(WHOLE.encode(), "keys.yaml").tenants
    assert search == TenantEntry(
        "search",
        ("search", "search-dev"),
        ("minilm", "shared/reranker", "lab/*"),
        Limits(parse_rate("20/s:100"), parse_rate("6000/m"), parse_rate("100000/m")),
        (
            KeyEntry("a1", HASH, "ann's laptop", datetime(2027, 1, 31, 17, tzinfo=UTC)),
            KeyEntry("a2", "cd" * 32, "", datetime(2027, 2, 1, tzinfo=UTC)),
        ),
        "high",
        5,
    )
    assert (support.priority, support.weight) == ("normal", 1)
    assert (support.services, support.limits, support.keys) == (("*",), None, ())


def test_the_example_of_the_page_is_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "access.md").read_text()
    (example,) = re.findall(r"^```yml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tenant,) = read_key_file(example.encode(), "docs/access.md").tenants
    assert tenant.limits == Limits(
        parse_rate("20/s:100"), parse_rate("6000/m"), parse_rate("100000/m")
    )
    assert len(tenant.keys) == 1 and tenant.namespaces == ("search", "search-dev")


def test_json_says_the_same() -> None:
    entry = {"id": "a", "sha256": HASH, "expires": "2027-01-31T18:00:00Z"}
    tenants = [{"name": "t", "namespaces": ["n"], "keys": [entry]}]
    found = read_key_file(json.dumps({"tenants": tenants}).encode(), "f")
    assert found.tenants[0].keys[0].expires == datetime(2027, 1, 31, 18, tzinfo=UTC)


def test_what_is_written_is_read_as_the_same() -> None:
    content = read_key_file(WHOLE.encode(), "f")
    assert read_key_file(write_key_file(content).encode(), "g") == content
    assert read_key_file(write_key_file(KeyFile()).encode(), "g") == KeyFile()


def test_a_key_is_taken_out() -> None:
    content = read_key_file(WHOLE.encode(), "f")
    assert [key.id for key in content.without_key("a1").tenants[0].keys] == ["a2"]
    with pytest.raises(KeyFileError, match="no key 'zz'"):
        content.without_key("zz")


def entry(key: str) -> str:
    return f"tenants:\n- name: t\n  namespaces: [n]\n  keys:\n  - {key}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", r"f line 1: got a list, needs a mapping with tenants\."),
        ("tenant: []", r"f line 1: tenant: this field does not exist; did you mean tenants\?"),
        ("tenants: {}", r"f line 1: tenants: got a mapping, needs a list"),
        ("tenants:\n- {name: t}", r"f line 2: tenants\[0\]\.namespaces: required"),
        ("tenants:\n- {namespaces: [n]}", r"line 2: tenants\[0\]\.name: required"),
        ("tenants:\n- name: 5\n  namespaces: [n]", r"line 2: .*name: got 5, needs .* in quotes"),
        (
            "tenants:\n- name: t\n  namespaces:\n  - N_N",
            r"line 4: tenants\[0\]\.namespaces\[0\]: got 'N_N', needs the name of a namespace",
        ),
        (
            "tenants:\n- name: t\n  namespaces: [n]\n  priority: urgent",
            r"line 4: .*priority: got 'urgent', needs one of high, normal, low\.",
        ),
        (
            "tenants:\n- name: t\n  namespaces: [n]\n  weight: 0",
            r"line 4: .*weight: got 0, needs a whole number from 1 to 100\.",
        ),
        (
            "tenants:\n- name: t\n  namespaces: [n]\n  services: [a/b/c]",
            r"line 4: .*services\[0\]: got 'a/b/c', needs name, namespace/name, namespace/\* or \*",
        ),
        (
            "tenants:\n- name: t\n  namespaces: [n]\n  limits:\n    requests: fast",
            r"line 5: .*limits\.requests: got 'fast', needs a rate such as",
        ),
        (
            "tenants:\n- name: t\n  namespaces: [n]\n  limits:\n    requests: 100/s:5",
            r"line 5: .*limits\.requests: got '100/s:5', needs a burst of 10 or more",
        ),
        (entry("{id: a}"), r"line 5: .*keys\[0\]\.sha256: got nothing, needs the 64 hexadecimal"),
        (entry(f"{{sha256: {HASH}}}"), r"line 5: .*keys\[0\]\.id: required"),
        (entry(f"{{id: a, sha256: {HASH}, expires: soon}}"), r"expires: got 'soon', needs a mom"),
        (
            entry(f"{{id: a, sha256: {HASH}, expires: 2027-01-01T00:00:00}}"),
            r"expires: got 2027-01-01T00:00:00 without a zone",
        ),
        (entry(f"{{id: a, sha256: {HASH}}}\n  - {{id: a, sha256: {'cd' * 32}}}"), "line 6: .*id: "),
        (
            entry(f"{{id: a, sha256: {HASH}}}\n  - {{id: b, sha256: {HASH}}}"),
            r"line 6: .*sha256: it is another entry's key too\. Remove one",
        ),
        (
            "tenants:\n- {name: t, namespaces: [n]}\n- {name: t, namespaces: [n]}",
            r"line 3: tenants\[1\]\.name: 't' is there twice",
        ),
        ("tenants: []\ntenants: []", r"f: line 2, .*tenants stands twice, on lines 1 and 2"),
        (
            entry(f"{{id: a, sha256: {HASH}, expires: 9999-12-31T23:59:59-01:00}}"),
            r"line 5: .*expires: got 9999-12-31T23:59:59-01:00, in UTC beyond the years",
        ),
        (
            entry(f"{{id: a, sha256: {HASH}, expires: '0001-01-01T00:00:00+14:00'}}"),
            r"line 5: .*expires: got 0001-01-01T00:00:00\+14:00, in UTC beyond the years",
        ),
        (
            entry(f"{{id: a, sha256: {HASH}, expires: 2027-02-30}}"),
            "f: line 5, column .*: this is no timestamp; write it in quotes",
        ),
        (
            f"tenants:\n- name: t\n  namespaces: [n]\n  weight: {'9' * 5000}",
            "f: line 4, column 11: this is no int",
        ),
        (
            f"tenants:\n- name: t\n  namespaces: [n]\n  weight: 0x{'f' * 5000}",
            "f: line 4, column 11: a whole number has at most 64 bits",
        ),
        (f"tenants: []\n? 0x{'f' * 5000}\n: 1", "f: line 2, column 3: a whole number has"),
        ("tenants: !!bool x", "f: line 1, column 10: this is no bool"),
        ("tenants: !!timestamp x", "f: line 1, column 10: this is no timestamp"),
        ("[" * 100_000 + "]" * 100_000, "f: is not valid YAML: it nests deeper than 16"),
        ("- " * 100_000, "f: is not valid YAML: it nests deeper than 16"),
        ('{"a":' + "[" * 20_000, "f: it nests too deeply"),
        ('{"a":"\\ud83d\\ude00"}', "f: a: this field does not exist"),
        ("tenants: [", r"f: line \d, column \d"),
        ("{", "f: Input data was truncated"),
        ("\tx", "f: line 1"),
        (
            entry(f"{{id: a, sha256: {HASH}}}").replace("name: t", "name: anonymous"),
            "'anonymous' is who comes without a key",
        ),
    ],
)
def test_mistakes(text: str, told: str) -> None:
    with pytest.raises(KeyFileError, match=told):
        read_key_file(text.encode(), "f")


def test_a_file_that_is_no_text_or_too_large() -> None:
    with pytest.raises(KeyFileError, match="not UTF-8"):
        read_key_file(b"\xff\xfe", "f")
    with pytest.raises(KeyFileError, match="larger than 4194304 bytes"):
        read_key_file(b" " * (4 * 1024 * 1024 + 1), "f")


@pytest.mark.parametrize(
    "text",
    [
        "{id: a, sha256: KEY}",
        "{id: KEY, sha256: abc}",
        "{id: a, key: KEY}",
        "{id: a, KEY: b}",
        "{id: a, sha256: abc, expires: KEY}",
        "KEY",
        "[KEY",
        "{id: a, sha256: {KEY: 1}}",
    ],
)
def test_a_key_in_the_wrong_place_is_not_told(text: str) -> None:
    key = make_key().text
    with pytest.raises(KeyFileError) as refused:
        read_key_file(entry(text.replace("KEY", key)).encode(), "f")
    assert key not in str(refused.value) and key[-20:] not in str(refused.value)
