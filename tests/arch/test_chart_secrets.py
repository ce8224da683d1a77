"""The chart asks the cluster for the Secrets that its values name, before anything is written."""

import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from tests.support import chart

SECRETS = {
    "good": {"cache-secret": "aGk=", "redis-url": "aGk=", "keys.yaml": "aGk="},
    "empty": {},
    "pull": {".dockerconfigjson": "e30="},
}
KINDS = {
    "/api/v1": [("secrets", "Secret", True)],
    "/apis/rbac.authorization.k8s.io/v1": [("clusterroles", "ClusterRole", False)],
    "/apis/apiregistration.k8s.io/v1": [("apiservices", "APIService", False)],
    "/apis/scheduling.k8s.io/v1": [("priorityclasses", "PriorityClass", False)],
}


def answer(path: str) -> dict[str, Any] | None:
    """What an API server says that has the Secrets above and nothing else."""
    if path == "/version":
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = [name.split("/")[2] for name in KINDS if name.startswith("/apis/")]
        versions = [{"groupVersion": f"{name}/v1", "version": "v1"} for name in groups]
        named = zip(groups, versions, strict=True)
        return {
            "kind": "APIGroupList",
            "groups": [{"name": n, "versions": [v], "preferredVersion": v} for n, v in named],
        }
    if path in KINDS:
        version = path.removeprefix("/apis/").removeprefix("/api/")
        resources = [
            {"name": name, "kind": kind, "namespaced": namespaced, "verbs": ["get"]}
            for name, kind, namespaced in KINDS[path]
        ]
        return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
    name = path.rpartition("/")[2]
    if path == f"/api/v1/namespaces/{chart.NAMESPACE}/secrets/{name}" and name in SECRETS:
        data = SECRETS[name]
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}
    if path.endswith("/clusterroles/cluster-admin"):
        version = "rbac.authorization.k8s.io/v1"
        return {"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}}
    return None


class ApiServer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = answer(self.path.partition("?")[0])
        missing = {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}
        body = json.dumps(found or missing).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def connected() -> Iterator[list[str]]:
    """Arguments with which Helm asks a cluster while it renders."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ApiServer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield ["--dry-run=server", f"--kube-apiserver=http://127.0.0.1:{server.server_port}"]
        server.shutdown()


def given(cache: str = "", redis: str = "", pull: str = "", keys: str = "") -> dict[str, Any]:
    return {
        "auth": {"mode": "keys" if keys else "none", "existingSecret": keys},
        "cache": {"existingSecret": cache},
        "redis": {"enabled": not redis, "existingSecret": redis},
        "image": {"pullSecrets": [pull] if pull else []},
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (given(cache="nope"), 'cache.existingSecret: there is no Secret "nope" in namespace "slu'),
        (given(cache="empty"), 'the Secret "empty" in namespace "sluice-system" has no key cache-'),
        (given(redis="nope"), "make it first, with the key redis-url."),
        (given(redis="pull"), "has no key redis-url"),
        (given(keys="nope"), "make it first, with the key keys.yaml."),
        (given(keys="empty"), "has no key keys.yaml"),
        (given(pull="nope"), 'image.pullSecrets: there is no Secret "nope"'),
    ],
)
def test_a_secret_that_is_missing_is_named(
    connected: list[str], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(chart.ChartError, match=re.escape(message)):
        chart.template(values, *connected)
    assert chart.template(values), "rendered outside a cluster, nothing is known"


@pytest.mark.parametrize(
    "values",
    [given("good", "good", "pull", "good"), given("nope") | {"redis": {"enabled": False}}],
    ids=["there", "unused"],
)
def test_secrets_that_are_there_or_that_nobody_reads_pass(
    connected: list[str], values: dict[str, Any]
) -> None:
    # It was rendered: what this server lacks is what objects are checked against afterwards.
    with pytest.raises(chart.ChartError, match="failed to download openapi"):
        chart.template(values, *connected)
