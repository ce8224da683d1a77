"""``sluice up`` with a list of requests to be answered in advance: they are, even asleep."""

import json
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.up_process import manifest, running_up, write

TEXTS = ["Where is my parcel?", "How do I send it back?"]


def test_answers_are_there_when_the_first_caller_comes(tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    entry = {"task": "embeddings", "body": {"input": TEXTS}}
    cache = {"sharing": "service", "precompute": [entry]}
    scaling = {"minReplicas": 0, "maxReplicas": 1, "idleAfter": "2s"}
    write(folder / "minilm.yaml", manifest(cache=cache, scaling=scaling))
    with running_up(tmp_path / "state", folder) as up:
        up.until_ready()

        def status_of(text: str) -> str:
            body = json.dumps({"model": "minilm", "input": text}).encode()
            headers = {"content-type": "application/json", "cache-control": "only-if-cached"}
            request = urllib.request.Request(f"{up.url}/v1/embeddings", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    return str(reply.headers["cache-status"])
            except urllib.error.HTTPError as refused:
                return str(refused.code)

        assert status_of("something else") == "504"
        up.until(lambda: "hit" in status_of(TEXTS[0]), "the first answer")
        up.until(lambda: not up.table()[0]["endpoints"], "sleep")
        assert [status_of(text).startswith("Sluice; hit") for text in TEXTS] == [True, True]
