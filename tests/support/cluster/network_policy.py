"""What NetworkPolicies mean as packet filter rules. Pure; `policy_daemon` applies them.

Every pod that a policy selects gets a chain a direction, which lets through what some policy allows
and drops the rest. The rules stand in the `security` table, which sees routed packets after
Services were translated to pods, and which nobody else uses, so it is replaced whole. Connections
that were allowed once stay allowed, and the node itself always gets through, as with the usual
network plugins.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_network
from typing import Any

from .options import NODE_ADDRESS

EVERYWHERE = "0.0.0.0/0"
OVER = ("Succeeded", "Failed")


@dataclass(frozen=True)
class Pod:
    """What a policy sees of a pod. ports: name → (protocol, number)."""

    namespace: str
    address: str
    labels: Mapping[str, str]
    ports: Mapping[str, tuple[str, int]] = field(default_factory=dict)


CLUSTER_DNS = Pod("kube-system", NODE_ADDRESS, {"k8s-app": "kube-dns"})
"""The DNS server runs beside the kubelet; policies may name it as they do elsewhere."""


@dataclass(frozen=True, order=True)
class Allowance:
    """Packets to or from a network. ports is empty for all, or `80` or `80:90`."""

    network: str
    protocol: str = ""
    ports: str = ""

    def rule(self, chain: str, direction: str) -> str:
        parts = [f"-A {chain} -{direction} {self.network}"]
        if self.protocol:
            parts.append(f"-p {self.protocol}")
        if self.ports:
            parts.append(f"-m {self.protocol} --dport {self.ports}")
        return " ".join([*parts, "-j RETURN"])


def render(
    policies: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    namespaces: Iterable[Mapping[str, Any]],
) -> str:
    """The whole table, as iptables-restore reads it, from API objects. Same input, same text."""
    world = World(pods, namespaces)
    jumps: list[str] = []
    chains: list[str] = []
    rules: list[str] = []
    listed = list(policies)
    for number, pod in enumerate(world.pods):
        for kind, own, other in (("Egress", "s", "d"), ("Ingress", "d", "s")):
            allowed = world.allowances(listed, pod, kind)
            if allowed is None:
                continue
            chain = f"{kind.upper()}-{number}"
            chains.append(f":{chain} - [0:0]")
            jumps.append(f"-A POLICY -{own} {pod.address} -j {chain}")
            rules += [each.rule(chain, other) for each in sorted(allowed)]
            # A pod always reaches itself.
            rules += [f"-A {chain} -{other} {pod.address} -j RETURN", f"-A {chain} -j DROP"]
    builtin = [f":{name} ACCEPT [0:0]" for name in ("INPUT", "FORWARD", "OUTPUT")]
    established = "-A POLICY -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
    # FORWARD is where pods meet pods; INPUT where they meet the node: API server and DNS.
    hooks = ["-A FORWARD -j POLICY", "-A INPUT -j POLICY", established]
    lines = ["*security", *builtin, ":POLICY - [0:0]", *chains, *hooks, *jumps, *rules, "COMMIT"]
    return "\n".join(lines) + "\n"


class World:
    """Pods and namespaces as policies see them."""

    def __init__(
        self, pods: Iterable[Mapping[str, Any]], namespaces: Iterable[Mapping[str, Any]]
    ) -> None:
        seen = (_pod(item) for item in pods)
        self.pods = sorted((pod for pod in seen if pod), key=lambda pod: pod.address)
        self._namespaces = {
            item["metadata"]["name"]: item["metadata"].get("labels", {}) for item in namespaces
        }

    def __repr__(self) -> str:
        return f"<World of {len(self.pods)} pods in {len(self._namespaces)} namespaces>"

    def allowances(
        self, policies: Iterable[Mapping[str, Any]], pod: Pod, kind: str
    ) -> set[Allowance] | None:
        """What may pass in one direction ("Ingress" or "Egress"); None if no policy selects it."""
        allowed: set[Allowance] | None = None
        for policy in policies:
            spec = policy["spec"]
            if (
                policy["metadata"]["namespace"] != pod.namespace
                or kind not in _types(spec)
                or not matches(spec.get("podSelector", {}), pod.labels)
            ):
                continue
            allowed = allowed or set()
            for rule in spec.get(kind.lower()) or []:
                allowed |= set(self._allowances_of(rule, pod, kind))
        return allowed

    def _allowances_of(self, rule: Mapping[str, Any], pod: Pod, kind: str) -> Iterator[Allowance]:
        for network, peer in self._peers(rule, pod, kind):
            target = pod if kind == "Ingress" else peer
            if not rule.get("ports"):
                yield Allowance(network)
            for port in rule.get("ports") or []:
                protocol = port.get("protocol", "TCP")
                numbers = _numbers(port, protocol, target)
                if numbers is not None:
                    yield Allowance(network, protocol.lower(), numbers)

    def _peers(
        self, rule: Mapping[str, Any], pod: Pod, kind: str
    ) -> Iterator[tuple[str, Pod | None]]:
        """Networks, with the pod where the network is one."""
        peers = rule.get("from" if kind == "Ingress" else "to")
        if not peers:
            yield EVERYWHERE, None
        for peer in peers or []:
            if "ipBlock" in peer:
                yield from ((network, None) for network in _networks(peer["ipBlock"]))
                continue
            for other in (*self.pods, CLUSTER_DNS):
                if self._is_peer(peer, other, pod.namespace):
                    yield f"{other.address}/32", other

    def _is_peer(self, peer: Mapping[str, Any], other: Pod, namespace: str) -> bool:
        if "namespaceSelector" in peer:
            labels = self._namespaces.get(other.namespace, {})
            if not matches(peer["namespaceSelector"], labels):
                return False
        elif other.namespace != namespace:
            return False
        return matches(peer.get("podSelector", {}), other.labels)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects; an empty one selects everything."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for expression in selector.get("matchExpressions") or []:
        value, values = labels.get(expression["key"]), expression.get("values") or []
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[expression["operator"]]:
            return False
    return True


def _pod(item: Mapping[str, Any]) -> Pod | None:
    """None for a pod without an address of its own."""
    status, spec = item.get("status", {}), item["spec"]
    address = status.get("podIP")
    if not address or spec.get("hostNetwork") or status.get("phase") in OVER:
        return None
    ports = {
        port["name"]: (port.get("protocol", "TCP"), port["containerPort"])
        for container in spec["containers"]
        for port in container.get("ports") or []
        if "name" in port
    }
    metadata = item["metadata"]
    return Pod(metadata["namespace"], address, metadata.get("labels") or {}, ports)


def _types(spec: Mapping[str, Any]) -> list[str]:
    """The API server fills this in; the rule for objects that come from elsewhere."""
    return spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]


def _networks(block: Mapping[str, Any]) -> list[str]:
    """A block without its exceptions; empty for IPv6, which the cluster does not speak."""
    network = ip_network(block["cidr"], strict=False)
    if not isinstance(network, IPv4Network):
        return []
    remaining = [network]
    for text in block.get("except") or []:
        gap = IPv4Network(text, strict=False)
        remaining = [part for each in remaining for part in _without(each, gap)]
    return [str(each) for each in remaining]


def _without(network: IPv4Network, gap: IPv4Network) -> list[IPv4Network]:
    if not network.overlaps(gap):
        return [network]
    return list(network.address_exclude(gap)) if gap.subnet_of(network) else []


def _numbers(port: Mapping[str, Any], protocol: str, target: Pod | None) -> str | None:
    """As iptables writes them; empty for all, None for a name that the target does not have."""
    wanted = port.get("port")
    if wanted is None:
        return ""
    if isinstance(wanted, str):
        named = target.ports.get(wanted) if target else None
        return str(named[1]) if named and named[0] == protocol else None
    return f"{wanted}:{port['endPort']}" if "endPort" in port else str(wanted)
