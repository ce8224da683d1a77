"""Every daemon of a test cluster: its command line and its configuration file. Pure.

What stands here without a reason is what kubeadm would write; the rest says why. The box writes the
files and starts the programs in order.
"""

from .options import (
    CLUSTER_DOMAIN,
    DNS_SERVICE_ADDRESS,
    NODE,
    NODE_ADDRESS,
    POD_CIDR,
    SERVICE_CIDR,
    Options,
    Site,
)

ETCD_URL = "http://127.0.0.1:2379"


def etcd(site: Site) -> list[str]:
    return [
        str(site.programs / "etcd"),
        "--name=n",
        f"--data-dir={site.private / 'etcd'}",
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=n=http://127.0.0.1:2380",
        "--logger=zap",
        "--unsafe-no-fsync",  # it lives in memory, and dies with the cluster
        # It gives up what takes longer than 5 s and twice this, as all that is on its way while the
        # machine stands still for some seconds. It begins by waiting for as long as this at most.
        "--election-timeout=3000",
    ]


def api_server(site: Site) -> list[str]:
    pki = site.certificates
    return [
        str(site.programs / "kube-apiserver"),
        f"--etcd-servers={ETCD_URL}",
        "--bind-address=0.0.0.0",
        f"--secure-port={site.api_port}",
        f"--advertise-address={NODE_ADDRESS}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={pki / 'front-proxy.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy.key'}",
        "--enable-aggregator-routing=true",  # without it no metrics API of ours is reached
        "--profiling=false",
    ]


def controllers(site: Site, options: Options) -> list[str]:
    pki = site.certificates
    return [
        str(site.programs / "kube-controller-manager"),
        *_as_user(site, "kcm"),
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'sa.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
        f"--horizontal-pod-autoscaler-sync-period={options.hpa_sync_seconds}s",
        "--horizontal-pod-autoscaler-initial-readiness-delay=2s",
        # With the default rates the first ServiceAccount, which every pod needs, comes 5 s late.
        "--kube-api-qps=300",
        "--kube-api-burst=600",
        "--profiling=false",
    ]


def scheduler(site: Site) -> list[str]:
    return [
        str(site.programs / "kube-scheduler"),
        *_as_user(site, "scheduler"),
        "--leader-elect=false",
        "--profiling=false",
    ]


def _as_user(site: Site, user: str) -> list[str]:
    path = site.kubeconfig(user)
    return [
        f"--kubeconfig={path}",
        f"--authentication-kubeconfig={path}",
        f"--authorization-kubeconfig={path}",
        "--bind-address=127.0.0.1",
    ]


def containerd(site: Site) -> list[str]:
    return ["containerd", "--config", str(site.configuration / "containerd.toml")]


def containerd_configuration(site: Site, *, limited: bool) -> str:
    """limited: the machine withholds CAP_SYS_RESOURCE, so runc cannot lower an oom_score_adj."""
    cri = "io.containerd.grpc.v1.cri"
    return f"""\
version = 2
root = "{site.store}"
state = "{site.private}/containerd"
[grpc]
  address = "{site.containerd_socket}"
[plugins."{cri}"]
  sandbox_image = "localhost/pause:1"
  netns_mounts_under_state_dir = true
  disable_apparmor = true
  restrict_oom_score_adj = {str(limited).lower()}
  [plugins."{cri}".containerd]
    snapshotter = "overlayfs"
    [plugins."{cri}".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."{cri}".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."{cri}".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{site.configuration}/cni"
"""


def cni_configuration(site: Site) -> dict[str, object]:
    """`ptp`, not `bridge`: every packet is routed, so that policies see it, and hairpins work."""
    addresses = {
        "type": "host-local",
        "dataDir": str(site.private / "ipam"),
        "ranges": [[{"subnet": POD_CIDR}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def kubelet(site: Site) -> list[str]:
    return [
        str(site.programs / "kubelet"),
        f"--config={site.configuration / 'kubelet.json'}",
        f"--kubeconfig={site.kubeconfig('kubelet')}",
        # Two kubelets on one cgroup tree take each other's pods for orphans and destroy them.
        f"--cgroup-root=/{site.name}",
        f"--root-dir={site.private / 'kubelet'}",
        f"--cert-dir={site.private / 'kubelet-pki'}",
        f"--hostname-override={NODE}",
        f"--node-ip={NODE_ADDRESS}",
    ]


def kubelet_configuration(site: Site, options: Options) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(site.certificates / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(site.certificates / "kubelet.crt"),
        "tlsPrivateKeyFile": str(site.certificates / "kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "failCgroupV1": False,
        "podLogsDir": str(site.logs / "pods"),
        "containerRuntimeEndpoint": f"unix://{site.containerd_socket}",
        "volumePluginDir": str(site.private / "volume-plugins"),
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [DNS_SERVICE_ADDRESS],
        "resolvConf": str(site.configuration / "resolv.conf"),
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "imagefs.available": "1%",
        },
        # Images were loaded by hand; what is collected cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": options.max_pods,
        "serializeImagePulls": True,
    }


def proxy(site: Site) -> list[str]:
    return [
        str(site.programs / "kube-proxy"),
        f"--config={site.configuration / 'proxy.json'}",
    ]


def proxy_configuration(site: Site) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(site.kubeconfig("proxy"))},
        "clusterCIDR": POD_CIDR,
        "hostnameOverride": NODE,
        "bindAddress": "0.0.0.0",
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # These sysctls cannot be written in a network namespace.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
        "iptables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
    }


def coredns(site: Site) -> list[str]:
    return [
        str(site.tools / "coredns"),
        "-conf",
        str(site.configuration / "Corefile"),
    ]


def coredns_configuration(site: Site) -> str:
    """It answers for the cluster and knows no other name: there is no way out."""
    return f"""\
{CLUSTER_DOMAIN}:53 in-addr.arpa:53 {{
    bind {NODE_ADDRESS}
    errors
    ready 127.0.0.1:8181
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {site.kubeconfig()}
        pods insecure
        ttl 5
    }}
    cache 5
}}
.:53 {{
    bind {NODE_ADDRESS}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def dns_objects() -> list[dict[str, object]]:
    """The Service that pods are told of, and its endpoint: the server runs beside the kubelet."""
    ports = [("dns", "UDP"), ("dns-tcp", "TCP")]
    metadata = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
    service: dict[str, object] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": DNS_SERVICE_ADDRESS,
            "ports": [{"name": name, "protocol": kind, "port": 53} for name, kind in ports],
        },
    }
    slice_labels = {"kubernetes.io/service-name": "kube-dns"}
    endpoints: dict[str, object] = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": slice_labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
        "ports": [{"name": name, "protocol": kind, "port": 53} for name, kind in ports],
    }
    return [service, endpoints]
