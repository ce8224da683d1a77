"""Tables: YAML and JSON mean the same, and what is wrong is said with its place."""

import logging
import re
from pathlib import Path

import pytest

from sluice_api import wire
from sluice_gateway.discovery import StaticDiscovery, TableError, read_table

GOOD = """
services:
- name: emb
  revision: r1
  answerDigest: "sha256:1"
  tasks: [embeddings]
  public: true
  limits: {waiting: 5, timeoutSeconds: 2}
  endpoints:
  - url: "http://127.0.0.1:1"
    revision: r1
"""


def test_yaml_and_json_mean_the_same(tmp_path: Path) -> None:
    yaml, json = tmp_path / "t.yaml", tmp_path / "t.json"
    yaml.write_text(GOOD)
    json.write_text(
        '{"services":[{"name":"emb","revision":"r1","answerDigest":"sha256:1",'
        '"tasks":["embeddings"],"public":true,"limits":{"waiting":5,"timeoutSeconds":2},'
        '"endpoints":[{"url":"http://127.0.0.1:1","revision":"r1"}],"unknown":1}]}'
    )
    assert read_table(yaml) == read_table(json)
    assert read_table(yaml).services[0].limits.timeout_seconds == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "truncated"),
        ("services: [", "flow"),
        ("services: 1", "Expected `array`"),
        ("services: [{name: a}]", "revision"),
        ("services: [{name: a, revision: ''}]", "revision is empty"),
        ("services: [{name: a/b, revision: r}]", r"services\[0\]"),
        ("services: [{name: a, revision: r}, {name: a, revision: r}]", "twice"),
        (
            "services: [{name: a, revision: r, endpoints: [{url: x, revision: r}]}]",
            r"endpoints\[0\].url",
        ),
        (
            "services: [{name: a, revision: r, endpoints: [{url: 'http://a..b:9', revision: r}]}]",
            r"endpoints\[0\].url of service default/a: 'http://a\.\.b:9': 'a\.\.b' is no host",
        ),
        (
            "services: [{name: a, revision: r, limits: {waiting: -1}}]",
            r">= 0 - at `\$\.services\[0\]\.limits\.waiting`: got -1",
        ),
        (
            "services: [{name: a, revision: r, limits: {waiting: 100001}}]",
            r"<= 100000 - at .*limits\.waiting`: got 100001",
        ),
        (
            "services: [{name: a, revision: r, cache: {ttlSeconds: .inf}}]",
            r"<= 2592000.0 - at .*cache\.ttlSeconds`: got Infinity",
        ),
        (
            "services: [{name: a, revision: r, limits: {timeoutSeconds: .nan}}]",
            r"> 0.0 - at .*limits\.timeoutSeconds`: got NaN",
        ),
        ("services: [{name: a, revision: r, failure: {reason: X}}]", "message"),
        ("service: []", "missing required field `services`"),
        ("", "Expected `object`, got `null`"),
        ("[]", "Expected `object`"),
        ("kind: InferenceService\nmetadata: {name: a}", "this is an InferenceService.*sluice up /"),
        ("services: [{name: a, revision: 2027-02-30}]", "no timestamp.*line 1, column 32"),
        ("services: []\nservices: []", "services stands twice, on lines 1 and 2"),
        (f"services: {'9' * 5000}", "this is no int.*line 1, column 11"),
        ("services: !!bool x", "this is no bool.*line 1, column 11"),
        ("[" * 20_000, "nests too deeply"),
        ('{"services":' + "[" * 20_000, "nests too deeply"),
        ("services: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    with pytest.raises(TableError, match=told):
        read_table(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="No such file"):
        read_table(tmp_path / "none")


def test_unknown_members_are_told_by_path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(GOOD)
    with caplog.at_level(logging.WARNING):
        read_table(path)
        assert not caplog.records
        path.write_text(
            "version: 2\n"
            + GOOD.replace("public", "pubic").replace("waiting", "wating")
            + "    x: 1"
        )
        assert read_table(path).services[0].public is False
    (record,) = caplog.records
    assert record.__dict__["members"] == [
        "version",
        "services[0].pubic",
        "services[0].limits.wating",
        "services[0].endpoints[0].x",
    ]


def test_thousands_of_unknown_members_are_one_short_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.yaml"
    fields = "".join(f"    x{number}: 1\n" for number in range(5000))
    path.write_text(f"? {'y' * 9000}\n: 1\n{GOOD}{fields}")
    with caplog.at_level(logging.WARNING):
        read_table(path)
    (record,) = caplog.records
    assert record.__dict__["count"] == 5001
    assert len(str(record.__dict__["members"])) < 5000


class Told:
    """A table that keeps what it is told."""

    def __init__(self) -> None:
        self.tables: list[wire.ServiceTable] = []

    def replace(self, table: wire.ServiceTable) -> None:
        self.tables.append(table)

    def put(self, spec: wire.Service) -> None: ...
    def remove(self, namespace: str, name: str) -> None: ...


async def test_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(GOOD)
    discovery, told = StaticDiscovery(path), Told()
    discovery.begin(told)
    assert told.tables[0].services[0].name == "emb" and discovery.synced.is_set()
    assert repr(discovery) == "<StaticDiscovery t.yaml good, 1 read>"


def test_the_documented_tables_mean_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "gateway.md").read_text()
    tables = []
    for block in re.findall(r"^```yml\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        (tmp_path / "services.yml").write_text(block)
        tables.append(read_table(tmp_path / "services.yml"))
    assert not caplog.records
    short, long = (table.services[0] for table in tables)
    # The page says of the long one that it spells the defaults, but for what the short one says.
    assert (short.public, long.public) == (True, False)
    assert (short.endpoints[0].revision, long.endpoints[0].revision) == ("", "first")
    long.public, long.endpoints = short.public, short.endpoints
    assert short == long
