"""What each kind of NetworkPolicy rule becomes; the kernel's part is in tests/cluster."""

from typing import Any

import pytest

from tests.support.cluster.network_policy import Allowance, World, matches, render
from tests.support.cluster.options import NODE_ADDRESS


def pod(name: str, address: str, namespace: str = "a", **labels: str) -> dict[str, Any]:
    ports = [{"name": "http", "containerPort": 8080}]
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"ports": ports}]},
        "status": {"podIP": address, "phase": "Running"},
    }


def policy(namespace: str = "a", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": namespace}, "spec": {"podSelector": {}} | spec}


NAMESPACES = [{"metadata": {"name": name, "labels": {"name": name}}} for name in ("a", "b")]
WEB = pod("web", "10.0.0.1", app="web")
CALLER = pod("caller", "10.0.0.2", role="caller")
FOREIGNER = pod("foreigner", "10.0.0.3", namespace="b", role="caller")
PODS = [WEB, CALLER, FOREIGNER]


def allowed(policies: list[dict[str, Any]], kind: str = "Ingress") -> set[Allowance] | None:
    """What may reach (or leave) the pod `web`."""
    world = World(PODS, NAMESPACES)
    (web,) = (each for each in world.pods if each.address == "10.0.0.1")
    return world.allowances(policies, web, kind)


def ingress(*peers: dict[str, Any], **rule: Any) -> set[Allowance] | None:
    return allowed([policy(ingress=[{"from": list(peers)} | rule])])


def test_a_pod_that_no_policy_selects_is_open() -> None:
    others = [policy("b"), policy(podSelector={"matchLabels": {"app": "other"}})]
    assert allowed(others) is None
    assert "DROP" not in render(others, [WEB], NAMESPACES)


def test_a_policy_without_rules_shuts() -> None:
    assert allowed([policy()]) == set()
    assert allowed([policy()], "Egress") is None
    assert allowed([policy(policyTypes=["Ingress", "Egress"])], "Egress") == set()


@pytest.mark.parametrize(
    ("peers", "networks"),
    [
        ([], {"0.0.0.0/0"}),
        ([{"podSelector": {"matchLabels": {"role": "caller"}}}], {"10.0.0.2/32"}),
        ([{"namespaceSelector": {"matchLabels": {"name": "b"}}}], {"10.0.0.3/32"}),
        (
            [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "caller"}}}],
            {"10.0.0.2/32", "10.0.0.3/32"},
        ),
        (
            [{"ipBlock": {"cidr": "192.168.0.0/30", "except": ["192.168.0.1/32"]}}],
            {"192.168.0.0/32", "192.168.0.2/31"},
        ),
        ([{"ipBlock": {"cidr": "fd00::/8"}}], set()),
    ],
)
def test_peers_become_networks(peers: list[dict[str, Any]], networks: set[str]) -> None:
    found = ingress(*peers)
    assert found is not None
    assert {each.network for each in found} == networks


@pytest.mark.parametrize(
    ("port", "protocol", "ports"),
    [
        ({"port": 80}, "tcp", "80"),
        ({"port": 80, "endPort": 90, "protocol": "UDP"}, "udp", "80:90"),
        ({"port": "http"}, "tcp", "8080"),
        ({"protocol": "UDP"}, "udp", ""),
    ],
)
def test_ports_become_matches(port: dict[str, Any], protocol: str, ports: str) -> None:
    assert ingress(ports=[port]) == {Allowance("0.0.0.0/0", protocol, ports)}


def test_a_port_name_that_the_pod_does_not_have_opens_nothing() -> None:
    assert ingress(ports=[{"port": "grpc"}]) == set()
    assert ingress(ports=[{"port": "http", "protocol": "UDP"}]) == set()


def test_policies_add_up() -> None:
    one, two = (policy(ingress=[{"ports": [{"port": port}]}]) for port in (80, 81))
    found = allowed([one, policy(), two])
    assert found is not None
    assert {each.ports for each in found} == {"80", "81"}


def test_the_dns_server_counts_as_the_pod_that_it_is_elsewhere() -> None:
    system: dict[str, Any] = {"metadata": {"name": "kube-system", "labels": {"dns": "yes"}}}
    namespaces = [*NAMESPACES, system]
    peer = {
        "namespaceSelector": {"matchLabels": {"dns": "yes"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    rule = {"to": [peer], "ports": [{"port": 53, "protocol": "UDP"}]}
    table = render([policy(policyTypes=["Egress"], egress=[rule])], [WEB], namespaces)
    assert f"-d {NODE_ADDRESS}/32 -p udp -m udp --dport 53 -j RETURN" in table


def test_every_isolated_pod_drops_last() -> None:
    lines = render([policy()], [WEB, CALLER], NAMESPACES).splitlines()
    for chain in ("INGRESS-0", "INGRESS-1"):
        rules = [line for line in lines if line.startswith(f"-A {chain} ")]
        assert rules[-1] == f"-A {chain} -j DROP"
        assert sum("DROP" in rule for rule in rules) == 1
    assert lines[0] == "*security"
    assert lines[-1] == "COMMIT"


@pytest.mark.parametrize(
    ("operator", "values", "selected"),
    [
        ("In", ["x"], {"x"}),
        ("NotIn", ["x"], {"y", None}),
        ("Exists", [], {"x", "y"}),
        ("DoesNotExist", [], {None}),
    ],
)
def test_expressions_select(operator: str, values: list[str], selected: set[str | None]) -> None:
    selector = {"matchExpressions": [{"key": "k", "operator": operator, "values": values}]}
    found = {
        value
        for value in ("x", "y", None)
        if matches(selector, {} if value is None else {"k": value})
    }
    assert found == selected
