"""A Redis image for the cluster tests: this machine's own server with the libraries it asks for.

What the chart runs by default is pulled from a registry, which the tests' cluster cannot reach.
"""

import re
import shutil
import subprocess
from pathlib import Path

from tests.support.cluster import archives

NAME = "localhost/sluice-redis:test"
PROGRAMS = ("redis-server", "redis-cli")


def archive() -> Path:
    """The image's archive. Raises FileNotFoundError where Redis is not installed."""
    files: dict[str, bytes] = {}
    for program in PROGRAMS:
        found = shutil.which(program)
        if found is None:
            raise FileNotFoundError(program)
        files[f"usr/bin/{program}"] = Path(found).read_bytes()
        for library in _libraries(found):
            files[library.lstrip("/")] = Path(library).read_bytes()
    return archives.write(NAME, files, {}, {"Env": ["PATH=/usr/bin"], "Cmd": ["redis-server"]})


def _libraries(program: str) -> set[str]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"(?:=> |^\s*)(/\S+)", listed, re.MULTILINE))
