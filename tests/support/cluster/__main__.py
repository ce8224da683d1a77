"""Clusters for a person: `python -m tests.support.cluster start | exec | shell | end | build`.

The Makefile calls it (`make cluster`, `make cluster-exec`, `make cluster-down`). A cluster started
here stays in the background under its name until it is ended.
"""

import argparse
import os
import sys
import time

from . import leftovers, machine, programs
from .access import ClusterError
from .cluster import Cluster
from .options import DEFAULT_RELEASE, Options


def start(arguments: argparse.Namespace) -> None:
    machine.require()
    wanted = Options(arguments.release, arguments.hpa_sync, arguments.control_plane_only)
    started = time.monotonic()
    cluster = Cluster.start(wanted, owned=False, name=arguments.name)
    print(f"{cluster!r}; {time.monotonic() - started:.1f} s in all")
    print(f"  export KUBECONFIG={cluster.kubeconfig}")
    print(f"  export PATH={cluster.site.programs}:{cluster.site.tools}:$PATH")
    print(f"  enter it: {' '.join(cluster.entering())} bash")


def execute(arguments: argparse.Namespace) -> None:
    cluster = Cluster.join(leftovers.state_folder(arguments.name))
    command = [*cluster.entering(), *arguments.command]
    os.execvpe(command[0], command, cluster.environment)


def end(arguments: argparse.Namespace) -> None:
    Cluster.join(leftovers.state_folder(arguments.name)).end()


def build(arguments: argparse.Namespace) -> None:
    for module in (programs.kubernetes(arguments.release), programs.tools()):
        print(programs.ensure(module))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.cluster", description=__doc__)
    release = os.environ.get("SLUICE_TEST_KUBERNETES", DEFAULT_RELEASE)
    parser.add_argument("--name", default="dev", help="which cluster")
    parser.add_argument("--release", default=release, help="Kubernetes minor version")
    verbs = parser.add_subparsers(required=True)
    starting = verbs.add_parser("start", help="bring it up in the background")
    starting.add_argument("--hpa-sync", type=int, default=2, help="seconds between HPA rounds")
    starting.add_argument("--control-plane-only", action="store_true", help="without a node")
    starting.set_defaults(run=start)
    executing = verbs.add_parser("exec", help="run a command inside")
    executing.add_argument("command", nargs=argparse.REMAINDER)
    executing.set_defaults(run=execute)
    verbs.add_parser("end", help="end it and all that is in it").set_defaults(run=end)
    verbs.add_parser("build", help="only build the programs").set_defaults(run=build)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except (ClusterError, FileExistsError, machine.UnfitMachineError, programs.BuildError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
