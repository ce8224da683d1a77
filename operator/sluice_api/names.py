"""Every name that two parts of Sluice share: the resource, headers, ports, environment, Redis keys.

Nothing here has behaviour. When a name is needed in a second place it moves here, so that it is
never spelled twice.
"""

from typing import Final

# The resource ------------------------------------------------------------------------------------

GROUP: Final = "sluice.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "InferenceService"
PLURAL: Final = "inferenceservices"
SINGULAR: Final = "inferenceservice"
SHORT_NAME: Final = "inf"
CATEGORY: Final = "sluice"

DEFAULT_NAMESPACE: Final = "default"
ANONYMOUS_TENANT: Final = "anonymous"

# Labels, annotations, field managers: what the operator writes on everything it makes. -----------

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "sluice"
APP_NAME: Final = "app.kubernetes.io/name"
COMPONENT: Final = "app.kubernetes.io/component"
"""``operator``, ``gateway`` or ``worker``."""
WORKER_COMPONENT: Final = "worker"
SERVICE_LABEL: Final = f"{GROUP}/service"
REVISION_LABEL: Final = f"{GROUP}/revision"
"""With the one above on workers' Services, so that EndpointSlices carry both to the gateway."""
RENDERED: Final = f"{GROUP}/rendered"
"""Annotation of what the operator makes: a digest of what it asked for; tells what it dropped."""
TEMPLATE: Final = f"{GROUP}/template"
"""Annotation of a workers' Deployment: the template that it was given, and for which spec."""
RESTARTED: Final = f"{GROUP}/restarted-at"
"""Annotation of an InferenceService: another value replaces its workers, new ones first."""
DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
FIELD_MANAGER: Final = "sluice"
"""Owns everything the operator applies, but replicas."""
SCALER_FIELD_MANAGER: Final = "sluice-scaler"
"""Owns ``spec.replicas`` of the workers' Deployments."""
LEASE: Final = "sluice-operator"

# The metrics API ---------------------------------------------------------------------------------

METRICS_GROUP: Final = "custom.metrics.k8s.io"
METRIC_DESIRED: Final = "desired_replicas"
"""Replicas a revision should have; the selector names the revision by its label."""

# HTTP headers ------------------------------------------------------------------------------------
# Lower case, because that is how every parser in use reports them.

REQUEST_ID: Final = "x-request-id"
ANSWER_DIGEST: Final = "x-sluice-answer-digest"
REVISION: Final = "x-sluice-revision"
CAPACITY: Final = "x-sluice-capacity"
"""On every worker answer: ``limit;in-flight;backlog-seconds``, for example ``32;3;0.120``."""
DEADLINE_MS: Final = "x-sluice-deadline-ms"
"""Milliseconds the caller will still wait, counted from the moment the header is received."""
PRIORITY: Final = "x-sluice-priority"
"""``high``, ``normal`` or ``low``: which requests go first where some must wait."""
TENANT: Final = "x-sluice-tenant"
"""A keyed hash of the tenant's name, never the name itself."""
WANTS_ITEM: Final = "x-sluice-item"
"""``1`` asks a worker that streams for what the gateway keeps: the canonical item as a comment, and
the usage chunk, whether the caller wants that or not."""
IDEMPOTENCY_KEY: Final = "idempotency-key"
IDEMPOTENT_REPLAYED: Final = "idempotent-replayed"
"""``true`` on an answer that an earlier request with the same key was given."""
INFERENCE_JSON_BYTES: Final = "inference-header-content-length"
"""Of the binary tensors of the Open Inference Protocol: how much of a body is JSON."""
CACHE_STATUS: Final = "cache-status"
CACHE_NAME: Final = "Sluice"
SHOULD_RETRY: Final = "x-should-retry"
RETRY_AFTER_MS: Final = "retry-after-ms"
SERVICE_TIME: Final = "x-sluice-service-seconds"
"""On every whole worker answer: seconds of the worker the request used, without queueing.

A batch's time is divided among its requests by their cost (and by the lanes running side by side),
so the sum over a second's answers is the worker's utilisation, and one over the mean is the number
of such requests a second it can do: concurrency is already in the figure. A stream has none: its
head is sent before anything is computed. There the gateway divides the time that the stream took by
the number of requests that the worker had meanwhile.
"""

# Bodies ------------------------------------------------------------------------------------------

MAX_BODY_BYTES: Final = 16 * 2**20
"""The largest request body that is taken from a caller, unless told otherwise."""
WORKER_MAX_BODY_BYTES: Final = MAX_BODY_BYTES + 2**20
"""The same for a worker: what the gateway writes anew spells out defaults, so it may be longer."""

# Ports -------------------------------------------------------------------------------------------

APP_PORT: Final = 8080
ADMIN_PORT: Final = 8081
METRICS_API_PORT: Final = 8443

DEMAND_AUDIENCE: Final = "sluice-gateway"
"""Audience of the ServiceAccount token with which the operator reads ``/internal/demand``."""

DRAIN_PATH: Final = "/drain"
"""On a worker's admin port: a pod's hook before its end, answered when the worker is idle."""

# Environment of a worker -------------------------------------------------------------------------

ENV_MODEL_URI: Final = "SLUICE_MODEL_URI"
ENV_MODEL_REVISION: Final = "SLUICE_MODEL_REVISION"
ENV_MODEL_NAME: Final = "SLUICE_MODEL_NAME"
"""The service's own name; answers fall back to it when a request names no model."""
ENV_TASK: Final = "SLUICE_TASK"
ENV_DTYPE: Final = "SLUICE_DTYPE"
ENV_DEVICE: Final = "SLUICE_DEVICE"
ENV_MAX_INPUT_TOKENS: Final = "SLUICE_MAX_INPUT_TOKENS"
ENV_REVISION: Final = "SLUICE_REVISION"
ENV_BATCH_LATENCY_GOAL: Final = "SLUICE_BATCH_LATENCY_GOAL"
ENV_BATCH_MAX_SIZE: Final = "SLUICE_BATCH_MAX_SIZE"
ENV_MAX_BACKLOG: Final = "SLUICE_MAX_BACKLOG"
ENV_WORKER_HOST: Final = "SLUICE_WORKER_HOST"
"""Not SLUICE_HOST, which is the address of ``sluice up``: one name has one meaning."""
ENV_WORKER_PORT: Final = "SLUICE_WORKER_PORT"
ENV_WORKER_ADMIN_PORT: Final = "SLUICE_WORKER_ADMIN_PORT"
ENV_WORKER_MAX_BODY: Final = "SLUICE_WORKER_MAX_BODY_BYTES"
ENV_WORKER_THREADS: Final = "SLUICE_WORKER_THREADS"
ENV_WORKER_TIMEOUT: Final = "SLUICE_WORKER_TIMEOUT"
ENV_DRAIN_GRACE: Final = "SLUICE_DRAIN_GRACE"
ENV_DRAIN_TIMEOUT: Final = "SLUICE_DRAIN_TIMEOUT"
ENV_LOG: Final = "SLUICE_LOG"
"""``text`` (default) or ``json``."""

# Environment of the gateway ----------------------------------------------------------------------

ENV_REDIS_URL: Final = "SLUICE_REDIS_URL"

# Redis -------------------------------------------------------------------------------------------

REDIS_CACHE_PREFIX: Final = "sluice:cache:"
REDIS_EPOCHS_KEY: Final = "sluice:epochs"
REDIS_LIMITS_PREFIX: Final = "sluice:{limits}:"
"""With a hash tag: what is settled together must lie on one server of a cluster."""

# Worker exit codes: the operator turns them into reasons, people read them in ``sluice up``. ------

EXIT_MODEL_NOT_FOUND: Final = 64
EXIT_MODEL_DOWNLOAD_FAILED: Final = 65
EXIT_MODEL_REJECTED: Final = 66
EXIT_BAD_CONFIGURATION: Final = 78
