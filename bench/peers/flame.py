"""Where the gateway's time goes: sampled by py-spy from outside, while load runs.

The gateway itself knows nothing of it. Two files in ``results/``: an SVG for people (open it in a
browser; it can be searched) and folded stacks for programs, one a line with its number of samples.
"""

import subprocess
from collections import Counter
from pathlib import Path

import measure
from measure import Unavailable
from peers.proxies import EMBEDDINGS, Subject

PY_SPY = "py-spy==0.4.1"
RATE = 400
"""Samples a second."""
SECONDS = 4
FORMATS = {"flamegraph": ".svg", "raw": ".folded"}


def record(name: str, subject: Subject, script: str, path: str = EMBEDDINGS) -> Path:
    """Sample the subject under the load of ``script``. Raises :class:`Unavailable`."""
    program = measure.peer_venv(PY_SPY) / "py-spy"
    measure.RESULTS.mkdir(exist_ok=True)
    target = measure.RESULTS / f"{name}-flame.svg"
    url = f"http://127.0.0.1:{subject.port}{path}"
    for kind, suffix in FORMATS.items():
        command = [
            str(program), "record", "--pid", str(subject.process.child.pid), "--native",
            "--function", "--rate", str(RATE), "--duration", str(SECONDS), "--format", kind,
            "--output", str(target.with_suffix(suffix)),
        ]  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as sampling:
            measure.wrk(url, script, connections=32, seconds=SECONDS + 2)
            told = sampling.communicate(timeout=60)[1]
        if sampling.returncode:
            last = (told.strip().splitlines() or ["no reason given"])[-1]
            raise Unavailable(f"py-spy could not sample the process: {last}")
    return target


def heaviest(folded: Path, count: int = 12) -> list[tuple[str, float]]:
    """The functions with the largest shares of the samples, without what they call and waiting."""
    own: Counter[str] = Counter()
    for line in folded.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        function = stack.rpartition(";")[2]
        if not function.startswith("epoll"):  # It waits for work.
            own[function] += int(samples)
    total = sum(own.values()) or 1
    return [(name, samples / total) for name, samples in own.most_common(count)]
