"""What each replica of the operator says to the HPA, asked one by one.

They are asked as the API server does, but not through it: it always asks the same one, and what
that one knows, the others learn a moment later.
"""

import json
import ssl
import urllib.request

from sluice_api import names
from tests.support.cluster.cluster import Cluster
from tests.support.release import Release


def values(platform: Release, path: str) -> list[str]:
    """The value of the first item at a path of the metrics API, of each replica, or its refusal."""
    cluster = platform.cluster
    assert isinstance(cluster, Cluster)
    pki = cluster.site.certificates
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(pki / "front-proxy.crt", pki / "front-proxy.key")
    said = []
    for address in platform.addresses("operator"):
        host, port = cluster.forward(address, names.METRICS_API_PORT)
        request = urllib.request.Request(
            f"https://{host}:{port}{path}",
            headers={"X-Remote-User": "system:kube-controller-manager"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                said.append(str(json.load(answer)["items"][0]["value"]))
        except OSError as error:  # what it does not know is 404
            said.append(str(error))
    return said
