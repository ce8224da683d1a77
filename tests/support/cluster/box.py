"""The first process inside a cluster's namespaces: it brings the cluster up, keeps it, ends it.

`Cluster` starts it under `unshare`; it mounts what must be private, makes the network, writes the
configuration, starts every daemon as its own child, and then serves the control socket. It ends,
and everything with it, on request, on SIGTERM, and when the process that owns it has gone.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import certificates, cgroups, components, options
from .api_server import ApiServer
from .control import ControlServer
from .options import Options, Site
from .processes import Processes
from .relay import Relay

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
# What programs write to without being asked where; two clusters must not meet there.
PRIVATE_FOLDERS = ("/run", "/var/log", "/var/lib/kubelet", "/var/lib/cni")
KUBELET_SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
POLL_SECONDS = 0.05
STEP_SECONDS = 90.0
CAP_SYS_RESOURCE = 1 << 24  # some machines withhold it


class Box:
    """One cluster, from the inside."""

    def __init__(self, wanted: Options, site: Site, report: Callable[[str], None]) -> None:
        self._options = wanted
        self._site = site
        self._report = report
        self._processes = Processes(site.logs, ENVIRONMENT)
        self._api = ApiServer(site)
        self._relay = Relay()
        self._control = ControlServer(site.control_socket, self._answer)
        self._over = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Box {self._site.name} {self._processes!r}>"

    def end(self) -> None:
        """Ask for the end; `live` returns."""
        self._over.set()

    async def live(self) -> None:
        """Bring the cluster up and keep it. Raises what kept it from coming up."""
        self._processes.watch()
        try:
            await self._bring_up()
            self._control.start()
            self._report("ready")
            await self._over.wait()
        finally:
            await self._api.close()
            self._kill_all()
            cgroups.remove(self._site.name)

    # Bringing up ----------------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        site = self._site
        for folder in (site.logs, site.configuration / "cni", site.private):
            folder.mkdir(parents=True)
        await self._mount()
        await self._make_network()
        self._processes.start("etcd", components.etcd(site))
        if not self._options.control_plane_only:
            self._start_containerd()
        certificates.make(site)
        await self._until("etcd answers", self._etcd_answers)
        await self._start_control_plane()
        if not self._options.control_plane_only:
            await self._start_node()
        await self._until("controllers work", self._api.has_default_account)
        self._processes.check()

    async def _mount(self) -> None:
        run = self._processes.run
        for folder in PRIVATE_FOLDERS:
            os.makedirs(folder, exist_ok=True)
            await run("mount", "-t", "tmpfs", "tmpfs", folder)
        await run(
            "mount", "-t", "tmpfs", "-o", "size=6g,mode=700", "tmpfs", str(self._site.private)
        )
        resolver = self._site.configuration / "resolv.conf"
        resolver.write_text("")  # pods get the cluster's DNS only
        inner = self._site.private / "resolv.conf"
        inner.write_text(options.RESOLVER)
        await run("mount", "--bind", str(inner), "/etc/resolv.conf")
        for name in KUBELET_SYSCTLS:  # it writes a file of ours; the machine's setting stays
            real = Path("/proc/sys") / name
            if real.exists():
                mask = self._site.private / name.replace("/", ".")
                mask.write_text(real.read_text())
                await run("mount", "--bind", str(mask), str(real))

    async def _make_network(self) -> None:
        # A pair of Ethernet ends that both stay inside carries the node's address.
        await self._processes.run("ip", "link", "set", "lo", "up")
        await self._processes.run(
            "ip", "link", "add", "node0", "type", "veth", "peer", "name", "node0p"
        )
        await self._processes.run("ip", "addr", "add", f"{options.NODE_ADDRESS}/32", "dev", "node0")
        for end in ("node0", "node0p"):
            await self._processes.run("ip", "link", "set", end, "up")
        # Without any route, connecting to a Service fails before its address is translated.
        await self._processes.run("ip", "route", "add", options.SERVICE_CIDR, "dev", "node0")
        _route_packets()

    def _start_containerd(self) -> None:
        site = self._site
        limited = not _bounding_capabilities() & CAP_SYS_RESOURCE
        text = components.containerd_configuration(site, limited=limited)
        (site.configuration / "containerd.toml").write_text(text)
        _write_json(site.configuration / "cni/10-pods.conflist", components.cni_configuration(site))
        self._processes.start("containerd", components.containerd(site))

    async def _start_control_plane(self) -> None:
        site = self._site
        self._processes.start(options.API_SERVER, components.api_server(site))
        if not self._options.control_plane_only:
            await self._sweep_containers()  # while the API server reads its 140 MB
        await self._until("API server ready", self._api.is_ready)
        self._processes.start(options.CONTROLLERS, components.controllers(site, self._options))
        self._processes.start(options.SCHEDULER, components.scheduler(site))

    async def _sweep_containers(self) -> None:
        """Drop the containers of earlier clusters from the store, before a kubelet sees them."""
        await self._until("containerd answers", self._containerd_answers)
        ctr = ("ctr", "-a", str(self._site.containerd_socket), "-n", "k8s.io", "containers")
        if old := (await self._processes.run(*ctr, "ls", "-q")).split():
            await self._processes.run(*ctr, "rm", *old)
            await self._processes.stop("containerd", signal.SIGTERM)
            self._processes.start("containerd")
            await self._until("containerd answers again", self._containerd_answers)

    async def _start_node(self) -> None:
        site = self._site
        cgroups.make(site.name)
        kubelet = components.kubelet_configuration(site, self._options)
        _write_json(site.configuration / "kubelet.json", kubelet)
        self._processes.start("kubelet", components.kubelet(site))
        _write_json(site.configuration / "proxy.json", components.proxy_configuration(site))
        self._processes.start(options.PROXY, components.proxy(site))
        (site.configuration / "Corefile").write_text(components.coredns_configuration(site))
        self._processes.start("coredns", components.coredns(site))
        policy = ["-m", f"{__package__}.policy_daemon", str(site.kubeconfig())]
        self._processes.start(options.POLICY, [sys.executable, *policy])
        for item in components.dns_objects():
            await self._api.create(item)
        await self._until("node ready", self._api.has_ready_node)
        for what, probe in (
            ("Services have addresses", self._proxy_answers),
            ("cluster DNS answers", self._dns_answers),
        ):
            await self._until(what, probe)

    async def _until(self, what: str, probe: Callable[[], Awaitable[bool]]) -> None:
        """Wait for a condition and report it. Raises TimeoutError, or DaemonDiedError at once."""
        deadline = time.monotonic() + STEP_SECONDS
        while not await probe():
            self._processes.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {STEP_SECONDS:.0f} s: {what}")
            await asyncio.sleep(POLL_SECONDS)
        self._report(what)

    async def _etcd_answers(self) -> bool:
        return await self._api.answers(f"{components.ETCD_URL}/health")

    async def _proxy_answers(self) -> bool:
        return await self._api.answers("http://127.0.0.1:10256/healthz")

    async def _kubelet_answers(self) -> bool:
        return await self._api.answers("http://127.0.0.1:10248/healthz")

    async def _dns_answers(self) -> bool:
        return await self._api.answers("http://127.0.0.1:8181/ready")

    async def _containerd_answers(self) -> bool:
        ctr = ("ctr", "-a", str(self._site.containerd_socket), "version")
        with suppress(RuntimeError):
            await self._processes.run(*ctr)
            return True
        return False

    # Living ---------------------------------------------------------------------------------------

    async def _answer(self, request: dict[str, Any], handed: socket.socket | None) -> Any:
        name = request.get("name", "")
        match request["do"]:
            case "status":
                return {"running": self._processes.running(), "deaths": self._processes.deaths}
            case "stop":
                await self._processes.stop(name, signal.Signals(request["signal"]))
            case "start":
                self._processes.start(name)
                await self._until_answers(name)
            case "signal":
                os.kill(self._processes.running()[name], request["signal"])
            case "forwarded":
                return self._relay.address(request["host"], request["port"])
            case "forward" if handed:
                await self._relay.forward(handed, request["host"], request["port"])
            case "end":
                self.end()
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")
        return None

    async def _until_answers(self, name: str) -> None:
        probes = {
            "etcd": self._etcd_answers,
            options.API_SERVER: self._api.is_ready,
            "containerd": self._containerd_answers,
            "kubelet": self._kubelet_answers,
            options.PROXY: self._proxy_answers,
            "coredns": self._dns_answers,
        }
        if name in probes:
            await self._until(f"{name} answers again", probes[name])

    def _kill_all(self) -> None:
        """Every other process of the namespace: daemons, shims, containers, commands of tests."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)


def _route_packets() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1))


def _bounding_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapBnd:"):
            return int(line.split()[1], 16)
    return 0


async def _live(wanted: Options, site: Site, report: int, owner: int | None) -> None:
    started = time.monotonic()

    def tell(step: str, **more: object) -> None:
        line = {"step": step, "seconds": round(time.monotonic() - started, 2)} | more
        with suppress(BrokenPipeError):  # the starter has gone; its end is noticed elsewhere
            os.write(report, json.dumps(line).encode() + b"\n")

    box = Box(wanted, site, tell)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, box.end)
    if owner is not None:
        loop.add_reader(owner, box.end)
    try:
        await box.live()
    except Exception as error:
        tell("failed", error=f"{type(error).__name__}: {error}")
        raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wanted", help="options and site, as options.encode writes them")
    parser.add_argument("--report", type=int, required=True, help="descriptor for progress lines")
    parser.add_argument("--lock", type=int, required=True, action="append", help="kept open")
    parser.add_argument("--owner", type=int, help="process descriptor whose end ends the box")
    arguments = parser.parse_args()
    for descriptor in (arguments.report, *arguments.lock, arguments.owner):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
    wanted, site = options.decode(arguments.wanted)
    asyncio.run(_live(wanted, site, arguments.report, arguments.owner))


if __name__ == "__main__":
    main()
