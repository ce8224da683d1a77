"""What an account may do in a cluster, and what it was refused for want of a right.

An API server that has just started, or a role that has just been bound, refuses for a moment what
the role allows: its authorizer follows roles and bindings by watches. So what a log tells of is
asked again.
"""

import re
from dataclasses import dataclass
from typing import Self

from tests.support.cluster.access import Access

REFUSAL = re.compile(r"system:serviceaccount:\S+ cannot ")
"""Of a right that is lacking; quotas and pod security forbid in other words."""
# As k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go writes it.
REFUSED = re.compile(
    r'(?: "(?P<name>[^"]+)" is forbidden: User )?"(?P<account>system:serviceaccount:[^"]+)" '
    r'cannot (?P<verb>\S+) resource "(?P<resource>[^"/]+)(?:/(?P<subresource>[^"]+))?" '
    r'in API group "(?P<group>[^"]*)" '
    r'(?:in the namespace "(?P<namespace>[^"]+)"|at the cluster scope)'
)


@dataclass(frozen=True)
class Right:
    """One thing that an account may do or not; parts that it does not have are empty."""

    account: str
    verb: str
    resource: str
    group: str = ""
    name: str = ""
    subresource: str = ""
    namespace: str = ""

    @classmethod
    def refused(cls, line: str) -> Self:
        """The one that a line of a log tells of. Raises ValueError where it is not understood."""
        found = REFUSED.search(line.replace("\\", ""))  # our logs are JSON
        if not found:
            raise ValueError(f"a refusal of another form: {line}")
        return cls(**{part: told or "" for part, told in found.groupdict().items()})

    def is_given(self, cluster: Access) -> bool:
        """Whether the account has it now."""
        kind = ".".join(filter(None, (self.resource, self.group)))
        where = ("--namespace", self.namespace) if self.namespace else ("--all-namespaces",)
        part = f"--subresource={self.subresource}"
        return may(cluster, self.account, self.verb, f"{kind}/{self.name}", part, *where)


def may(cluster: Access, account: str, *what: str) -> bool:
    """What `kubectl auth can-i` says to ``what``, for the user ``account``."""
    answer = cluster.kubectl("auth", "can-i", "--as", account, *what, check=False)
    return answer.stdout.strip() == "yes"


def lacking(cluster: Access, log: str) -> set[Right]:
    """The rights for want of which something was refused, as far as they are lacking still."""
    refused = {Right.refused(line) for line in log.splitlines() if REFUSAL.search(line)}
    return {right for right in refused if not right.is_given(cluster)}
