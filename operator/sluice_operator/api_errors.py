"""What can go wrong with the API server, as the operator sees it: one family of errors.

``cluster`` turns status codes and broken connections into these, once; above it nobody looks at
HTTP. ``work_queue`` reads from them when to try again, ``reconcile`` what to tell the owner.
"""

from collections.abc import Mapping
from typing import Final


class ApiError(Exception):
    """A call to the API server that did not do what was asked.

    Attributes:
        verb: ``get``, ``list``, ``create``, ``update``, ``patch`` or ``delete``.
        resource: plural with subresource, such as ``deployments`` or ``deployments/scale``.
        message: what the API server said.
    """

    def __init__(self, verb: str, resource: str, message: str) -> None:
        super().__init__(f"{verb} {resource}: {message}")
        self.verb = verb
        self.resource = resource
        self.message = message


class NotFound(ApiError):
    """The object, or its whole kind, is not there."""


class Conflict(ApiError):
    """It has changed since it was read, exists already, or is another object of that name."""


class Foreign(ApiError):
    """An object of that name is there already, and it belongs to somebody else."""


class PermissionDenied(ApiError):
    """The operator's role does not allow the verb on the resource."""


class QuotaExceeded(ApiError):
    """A ResourceQuota of the namespace stands against the object."""


class NamespaceEnding(ApiError):
    """The namespace is being deleted, or is gone: nothing can be made in it any more."""


class Invalid(ApiError):
    """The API server refuses the object; the message says which field, and why."""


class Throttled(ApiError):
    """The API server asks to come back later.

    Attributes:
        retry_after: seconds.
    """

    def __init__(self, verb: str, resource: str, message: str, retry_after: float) -> None:
        super().__init__(verb, resource, message)
        self.retry_after = retry_after


class Unavailable(ApiError):
    """No answer in time, a broken connection, or an error on the server's side."""


class NotLeader(Exception):
    """A write was asked for without a valid lease; nothing was sent."""


def error_of(verb: str, resource: str, status: int, message: str, retry_after: str) -> ApiError:
    """What an answer with an HTTP status of 300 and above means.

    Args:
        retry_after: the header of that name, seconds; may be empty.
    """
    if status == 429:
        seconds = float(retry_after) if retry_after.isdigit() else 1.0
        return Throttled(verb, resource, message, seconds)
    if status == 403:
        for words, kind in _FORBIDDEN.items():
            if words in message:
                return kind(verb, resource, message)
    if status == 404 and message.startswith("namespaces "):
        return NamespaceEnding(verb, resource, message)
    if message.startswith(_UNDECLARED):
        return Invalid(verb, resource, message)  # whatever its status: server-side apply says 500
    if status in _BY_STATUS:
        return _BY_STATUS[status](verb, resource, message)
    # 401 as well: the token may just have been rotated; the next call reads it again.
    if status >= 500 or status in (401, 408, 410):
        return Unavailable(verb, resource, message)
    return Invalid(verb, resource, message)


_UNDECLARED: Final = "failed to create typed patch object"
_Plain = type[NotFound | Conflict | PermissionDenied | QuotaExceeded | NamespaceEnding]
_BY_STATUS: Final[Mapping[int, _Plain]] = {403: PermissionDenied, 404: NotFound, 409: Conflict}
# The API server gives three kinds of news the same status.
_FORBIDDEN: Final[Mapping[str, _Plain]] = {
    "exceeded quota": QuotaExceeded,
    "being terminated": NamespaceEnding,
}
