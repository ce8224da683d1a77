"""Clusters for a person: `python -m tests.support.cluster VERB`; the Makefile calls it.

`start` leaves a cluster in the background under its name until `end`; `exec` runs a command inside;
`install` puts the platform on it, with the images of this checkout; `kind` does both with kind.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable

from tests.support.images.builder import BuildFailed
from tests.support.release import Release

from . import kind, leftovers, machine, programs
from .access import Access, ClusterError
from .choice import release
from .cluster import Cluster
from .options import CHECKOUT, Options

DEFAULT_NAME = "dev"
NAMES = re.compile(r"[a-z0-9-]{1,32}")  # part of the paths of Unix sockets, which are short
FAILURES = (
    BuildFailed,
    ClusterError,
    FileExistsError,
    RuntimeError,
    machine.UnfitMachineError,
    programs.BuildError,
)


def start(given: argparse.Namespace) -> None:
    machine.require()
    wanted = Options(given.release, given.hpa_sync, given.control_plane_only)
    try:
        cluster = Cluster.start(wanted, owned=False, name=given.name)
    except FileExistsError:
        cluster = _named(given)  # the one before; what was interrupted goes on
        if cluster.options != wanted:
            raise RuntimeError(
                f"{cluster.site.name} runs already, with {cluster.options}, not {wanted};"
                f" end it first: {_make('cluster-down', given)}"
            ) from None
    print(f"{cluster.site.name} runs Kubernetes {cluster.options.release}")
    print(f"  run a command in it: {_make('cluster-exec', given)} CMD='kubectl get pods -A'")
    print(f"  end it: {_make('cluster-down', given)}")
    print(f"  export KUBECONFIG={cluster.kubeconfig}")
    print(f"  export PATH={cluster.site.programs}:{cluster.site.tools}:$PATH")
    print(f"  enter it: {cluster.entrance()}")
    print(f"  logs of its daemons and pods: {cluster.site.logs}")


def execute(given: argparse.Namespace) -> None:
    cluster = _named(given)
    command = [*cluster.entering(), *given.command]
    os.execvpe(command[0], command, cluster.environment)


def install(given: argparse.Namespace) -> None:
    cluster = _named(given)
    _install(cluster)
    cluster.close()


def end(given: argparse.Namespace) -> None:
    leftovers.clean()  # of one that was killed nothing is left to end
    if not leftovers.state_folder(given.name).exists():
        print(f"there is no cluster {given.name}")
        return
    _named(given).end()


def start_kind(given: argparse.Namespace) -> None:
    cluster = kind.make()
    _install(cluster)
    print(f"  export KUBECONFIG=~/.kube/config; kubectl --context {cluster.context} get pods -A")
    print("  kubectl port-forward -n sluice-system service/sluice-gateway 8080:80")
    print(f"  end it: kind delete cluster --name {kind.NAME}")
    print(f"  tests on it: SLUICE_TEST_CLUSTER={cluster.context} make test-cluster")
    cluster.close()


def build(given: argparse.Namespace) -> None:
    for module in (programs.kubernetes(given.release), programs.tools()):
        print(programs.ensure(module))


def _named(given: argparse.Namespace) -> Cluster:
    """The running cluster of that name. Raises ClusterError if it is another checkout's."""
    cluster = Cluster.join(leftovers.state_folder(given.name))
    owner = cluster.site.checkout
    if owner != CHECKOUT and owner.exists():  # of one that is gone nobody else can end it
        cluster.close()
        raise ClusterError(
            f"{cluster.site.name} belongs to the checkout {owner}; give one of this checkout"
            " another name, as in make cluster NAME=mine, or end that one there:"
            f" cd {owner} && {_make('cluster-down', given)}"
        )
    return cluster


def _make(goal: str, given: argparse.Namespace) -> str:
    """The command line of the Makefile for this cluster."""
    return f"make {goal}" if given.name == DEFAULT_NAME else f"make {goal} NAME={given.name}"


def _name(text: str) -> str:
    if not NAMES.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} can be no cluster's name: use 1 to 32 small letters, digits and -"
        )
    return text


def _install(cluster: Access) -> None:
    platform = Release(cluster)
    was_there = platform.is_installed()
    platform.make_namespace()
    new = platform.load_images("worker", "stub")
    print(platform.install({"auth": {"publicAccess": True}}))
    if was_there and new:
        print(f"New: {', '.join(new)}. Operator and gateways are replaced; models keep their pods")
        print("  until you restart them: kubectl rollout restart deployment --selector \\")
        print("    app.kubernetes.io/component=worker --namespace NAMESPACE")
        platform.restart(new)
    if isinstance(cluster, Cluster):
        print(f"The gateway answers at {platform.url}, for as long as the cluster lives.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.cluster", description=__doc__)
    parser.add_argument("--name", type=_name, default=DEFAULT_NAME, help="which cluster")
    parser.add_argument("--release", default=release(), help="Kubernetes minor version")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Callable[..., None], words: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=words)
        added.set_defaults(run=run)
        return added

    starting = verb("start", start, "bring it up in the background")
    starting.add_argument("--hpa-sync", type=int, default=2, help="seconds between HPA rounds")
    starting.add_argument("--control-plane-only", action="store_true", help="without a node")
    executing = verb("exec", execute, "run a command inside")
    executing.add_argument("command", nargs=argparse.REMAINDER)
    verb("install", install, "put the platform on it with Helm")
    verb("end", end, "end it and all that is in it")
    verb("kind", start_kind, "a cluster of kind with the platform on it")
    verb("build", build, "only build the programs")
    given = parser.parse_args()
    try:
        given.run(given)
    except FAILURES as error:
        sys.exit(f"cluster: {error}")


if __name__ == "__main__":
    main()
