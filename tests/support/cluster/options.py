"""What a test cluster is asked to be, and the addresses inside it.

The same addresses serve every cluster: each lives in a network namespace of its own, from which no
packet leaves. Both sides read this page: the tests outside and the box within.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

NODE = "node1"
NODE_ADDRESS = "10.240.0.1"  # not a loopback one: the API server would not publish it
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_SERVICE_ADDRESS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"
# As in a pod, so that `SERVICE.NAMESPACE` is found; in no namespace, because commands are in none.
RESOLVER = f"""\
nameserver {DNS_SERVICE_ADDRESS}
search svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}
options ndots:5
"""

API_SERVER = "kube-apiserver"
CONTROLLERS = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
PROXY = "kube-proxy"
POLICY = "network-policy"
DAEMONS = (
    "etcd",
    API_SERVER,
    CONTROLLERS,
    SCHEDULER,
    "containerd",
    "kubelet",
    PROXY,
    "coredns",
    POLICY,
)
CONTROL_PLANE = DAEMONS[:4]

DEFAULT_RELEASE = "1.36"
CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Options:
    """One cluster. The defaults are those of the tests' shared one.

    release: a Kubernetes minor version, one of those with a module file.
    hpa_sync_seconds: the HPA's period; Kubernetes' own default is 15.
    control_plane_only: no node; pods stay Pending, or the test plays them.
    max_pods: how many pods the node takes.
    """

    release: str = DEFAULT_RELEASE
    hpa_sync_seconds: int = 2
    control_plane_only: bool = False
    max_pods: int = 110

    @property
    def daemons(self) -> tuple[str, ...]:
        return CONTROL_PLANE if self.control_plane_only else DAEMONS


@dataclass(frozen=True)
class Site:
    """Where one cluster keeps its things: files that both sides see, and where programs lie.

    state: a folder on disk, seen inside and outside: configuration, certificates, logs, sockets.
    store: containerd's own folder, kept from run to run, so that images are imported once.
    programs: the folder with the Kubernetes programs; tools: the one with CoreDNS and Helm.
    api_port: the API server's port inside, and of its relay on 127.0.0.1 outside.
    checkout: whose cluster it is: the folder of the project that it was started from.
    """

    state: Path
    store: Path
    programs: Path
    tools: Path
    api_port: int
    checkout: Path = CHECKOUT

    @property
    def name(self) -> str:
        """Also the name of the cluster's cgroup."""
        return self.state.name

    @property
    def private(self) -> Path:
        """Memory that only the box sees, gone with it: etcd's data, pods' volumes."""
        return self.state / "private"

    @property
    def certificates(self) -> Path:
        return self.state / "pki"

    @property
    def configuration(self) -> Path:
        return self.state / "conf"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def control_socket(self) -> Path:
        return self.state / "control.sock"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "containerd.sock"

    @property
    def description(self) -> Path:
        """How the cluster was made, so that others can join it: see `encode`."""
        return self.state / "cluster.json"

    @property
    def api_url(self) -> str:
        return f"https://127.0.0.1:{self.api_port}"

    def kubeconfig(self, user: str = "admin") -> Path:
        return self.state / "kubeconfig" / user


def encode(options: Options, site: Site) -> str:
    """As one argument of the box's command line."""
    places = {name: str(value) for name, value in asdict(site).items()}
    return json.dumps({"options": asdict(options), "site": places})


def decode(text: str) -> tuple[Options, Site]:
    content = json.loads(text)
    places = content["site"]
    port = int(places.pop("api_port"))
    site = Site(**{name: Path(value) for name, value in places.items()}, api_port=port)
    return Options(**content["options"]), site
