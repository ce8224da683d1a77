"""``python -m tests.support.images [NAME …]``: build the product's images.

With Docker where its daemon answers (they are then in Docker's store), with buildah elsewhere (they
are then in the cache folder). ``--cluster NAME`` puts them into a running test cluster instead.
``make images`` calls it.
"""

import argparse
import sys
from pathlib import Path

from . import builder
from .recipes import RECIPES


def main() -> int:
    parser = argparse.ArgumentParser(prog="images", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--cluster", type=Path, help="state folder of a running test cluster")
    parser.add_argument("--builder", choices=("auto", "docker", "buildah"), default="auto")
    given = parser.parse_args()
    names = given.names or list(RECIPES)
    if unknown := set(names) - set(RECIPES):
        parser.error(f"{', '.join(sorted(unknown))}: there are only {', '.join(RECIPES)}")
    docker = given.builder == "docker" or (
        given.builder == "auto" and not given.cluster and builder.docker_serves()
    )
    if not docker and (lacks := builder.missing()):
        print(f"images: this machine lacks {', '.join(lacks)}.", file=sys.stderr)
        return 1
    try:
        return _build(names, given.cluster, docker)
    except builder.BuildFailed as error:
        print(f"images: {error}", file=sys.stderr)
        return 1


def _build(names: list[str], cluster: Path | None, docker: bool) -> int:
    if cluster:
        from tests.support.cluster.cluster import Cluster

        from .loading import load

        load(Cluster.join(cluster), *names)
        print("\n".join(RECIPES[name].reference for name in names))
    elif docker:
        print("\n".join(recipe.reference for recipe in builder.build_with_docker(names)))
    else:
        made = builder.Builder()
        for recipe in made.build(names):
            print(recipe.reference, f"{made.layout.size(recipe.reference) / 2**20:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
