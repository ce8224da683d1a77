"""What ``helm test`` runs in a pod: an application's view of the gateway, by its Service."""

import json
import sys
import time
import urllib.error
import urllib.request

DEADLINE_SECONDS = 30


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until_answered(url: str) -> None:
    """A Service's address may lead nowhere for a moment after its pods are ready."""
    give_up = time.monotonic() + DEADLINE_SECONDS
    while True:
        try:
            status, _ = get(url)
        except OSError as error:
            status, told = 0, str(error)
        else:
            told = f"status {status}"
        if status == 200:
            return
        if time.monotonic() > give_up:
            sys.exit(f"{url}: {told}")
        time.sleep(0.2)


gateway = sys.argv[1]
until_answered(f"{gateway}/readyz")

if sys.argv[2] == "keys":
    status, body = get(f"{gateway}/v1/models")
    if status != 401 or json.loads(body)["error"]["code"] != "unauthorized":
        sys.exit(f"/v1/models without a key: status {status}, {body!r}")
    print(f"{gateway} answers, and lets nobody in without a key")
    sys.exit()

status, body = get(f"{gateway}/v1/models")
models = json.loads(body)
if status != 200 or models["object"] != "list":
    sys.exit(f"/v1/models: status {status}, {body!r}")

status, body = get(f"{gateway}/v1/models/no-such-model")
if status != 404 or json.loads(body)["error"]["code"] != "model_not_found":
    sys.exit(f"an unknown model: status {status}, {body!r}")

print(f"{gateway} answers; {len(models['data'])} models can be called without credentials")
