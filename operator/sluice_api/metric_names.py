"""Every metric Sluice exports, once: name, kind, labels, help.

Base units and ``_total`` as Prometheus asks; no label takes values that a caller can invent.
``docs/metrics.md`` is generated from this table.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

# gateway -----------------------------------------------------------------------------------------
# track is "stable" or "canary": the revision that answers, or the one on trial beside it.

GATEWAY_REQUESTS = Metric(
    "sluice_gateway_requests_total",
    "counter",
    "Requests answered, by outcome; a stream that broke counts as the error in it.",
    ("namespace", "service", "track", "route", "status"),
)
GATEWAY_DURATION = Metric(
    "sluice_gateway_request_duration_seconds",
    "histogram",
    "Time from the request's last byte to the answer's last byte.",
    ("namespace", "service", "track", "route"),
    SECONDS,
)
GATEWAY_STREAMS = Metric(
    "sluice_gateway_streams",
    "gauge",
    "Streamed answers under way to callers.",
    ("namespace", "service", "track"),
)
GATEWAY_FIRST_EVENT = Metric(
    "sluice_gateway_stream_first_event_seconds",
    "histogram",
    "Time from a request's last byte to the first event of its stream; replays not counted.",
    ("namespace", "service", "track"),
    SECONDS,
)
GATEWAY_STREAM_CHUNKS = Metric(
    "sluice_gateway_stream_chunks_total",
    "counter",
    "Pieces of streams received from workers, each of one event or of several that came together.",
    ("namespace", "service", "track"),
)
GATEWAY_STREAMS_CUT = Metric(
    "sluice_gateway_streams_cut_total",
    "counter",
    "Streams that had begun and did not get to their end, by cause: the code of the error in them,"
    " client_gone, slow (fell too far behind others), stalled (took nothing for too long).",
    ("namespace", "service", "track", "cause"),
)
GATEWAY_TOKENS = Metric(
    "sluice_gateway_tokens_total",
    "counter",
    "Tokens of the answers that workers computed, prompts included.",
    ("namespace", "service", "track"),
)
GATEWAY_CACHE = Metric(
    "sluice_gateway_cache_lookups_total",
    "counter",
    "Inputs looked up in the response cache, by result (l1, redis, stale, refused,"
    " joined, miss, bypass).",
    ("namespace", "service", "track", "result"),
)
GATEWAY_CACHE_RENEWALS = Metric(
    "sluice_gateway_cache_renewals_total",
    "counter",
    "Answers computed anew behind their callers' backs, by outcome (done, failed, skipped).",
    ("namespace", "service", "track", "outcome"),
)
GATEWAY_CACHE_LEASES = Metric(
    "sluice_gateway_cache_leases_total",
    "counter",
    "Inputs to be computed by one of all gateways, by outcome (led: by this one, followed: given"
    " another's answer, failed: given another's failure, alone: computed here without a lease).",
    ("namespace", "service", "track", "outcome"),
)
GATEWAY_CACHE_FAULTS = Metric(
    "sluice_gateway_cache_faults_total",
    "counter",
    "Cache operations that failed and were treated as a miss, by cause.",
    ("cause",),
)
GATEWAY_CACHE_BYTES = Metric(
    "sluice_gateway_cache_l1_bytes", "gauge", "Bytes held by the in-process cache."
)
GATEWAY_CACHE_EVICTIONS = Metric(
    "sluice_gateway_cache_l1_evictions_total",
    "counter",
    "Entries that the in-process cache threw out to make room for others.",
)
GATEWAY_REDIS_UP = Metric(
    "sluice_gateway_redis_up", "gauge", "1 while Redis answers in time, 0 while it is avoided."
)
GATEWAY_CACHE_HEARING = Metric(
    "sluice_gateway_cache_hearing",
    "gauge",
    "1 while invalidations by other gateways are heard, or there are none to be heard.",
)
GATEWAY_IN_FLIGHT = Metric(
    "sluice_gateway_in_flight",
    "gauge",
    "Requests at workers now.",
    ("namespace", "service", "track"),
)
GATEWAY_WAITING = Metric(
    "sluice_gateway_waiting",
    "gauge",
    "Requests waiting for a worker.",
    ("namespace", "service", "track"),
)
GATEWAY_ENDPOINTS = Metric(
    "sluice_gateway_endpoints",
    "gauge",
    "Workers known, by state (ready, starting, ejected, mismatch).",
    ("namespace", "service", "track", "state"),
)
GATEWAY_PRECOMPUTED = Metric(
    "sluice_gateway_precomputed",
    "gauge",
    "Inputs of spec.cache.precompute, by state (done, pending, failed).",
    ("namespace", "service", "track", "state"),
)
GATEWAY_RETRIES = Metric(
    "sluice_gateway_retries_total",
    "counter",
    "Requests sent again to another worker, by cause.",
    ("namespace", "service", "track", "cause"),
)
GATEWAY_EJECTIONS = Metric(
    "sluice_gateway_ejections_total",
    "counter",
    "Workers taken out after failures, by cause of the last (connect, reset, unresponsive, garbage,"
    " slow, silent, stream, digest, status_NNN).",
    ("namespace", "service", "track", "cause"),
)
GATEWAY_QUEUE_WAIT = Metric(
    "sluice_gateway_queue_wait_seconds",
    "histogram",
    "How long requests waited that could not be given to a worker at once, by priority (high,"
    " normal, low).",
    ("namespace", "service", "track", "priority"),
    SECONDS,
)
GATEWAY_QUEUE_REFUSED = Metric(
    "sluice_gateway_queue_refused_total",
    "counter",
    "Requests refused a place at a worker, by cause: full (the queue, or no turn before their"
    " deadline), displaced (by one with more right to wait), timeout (limits.queueTimeout), expired"
    " (their own deadline came first), failed (the model cannot be started),"
    " asleep (nobody wakes it).",
    ("namespace", "service", "track", "priority", "cause"),
)
GATEWAY_QUEUE_TENANTS = Metric(
    "sluice_gateway_queue_tenants",
    "gauge",
    "Tenants who have requests waiting, counted once per priority.",
    ("namespace", "service", "track"),
)
GATEWAY_EXPIRED = Metric(
    "sluice_gateway_expired_total",
    "counter",
    "Requests whose time ran out, by what they waited for (start, connect, first-byte, answer,"
    " between-tokens, total, shared: an answer that another request had asked for).",
    ("namespace", "service", "track", "phase"),
)
GATEWAY_HEDGES = Metric(
    "sluice_gateway_hedges_total",
    "counter",
    "Second workers asked because the first was slow, by outcome (won, lost, failed), and those not"
    " asked (no_budget, no_room).",
    ("namespace", "service", "track", "outcome"),
)
GATEWAY_PREFIXES = Metric(
    "sluice_gateway_prefix_choices_total",
    "counter",
    "Generations sent by what their prompt begins with: home (where its continuation will be looked"
    " for), elsewhere (home was full or too far above the mean load).",
    ("namespace", "service", "track", "result"),
)
GATEWAY_DENIALS = Metric(
    "sluice_gateway_denials_total",
    "counter",
    "Requests refused because of who asked, by tenant (empty where that is not known, other beyond"
    " a thousand) and code (unauthorized, model_not_found, rate_limited).",
    ("tenant", "code"),
)
GATEWAY_KEYS = Metric("sluice_gateway_keys", "gauge", "API keys that are good now.")
GATEWAY_KEYS_AGE = Metric(
    "sluice_gateway_keys_age_seconds",
    "gauge",
    "Time since the keys file was last known to be good; rises while it cannot be used.",
)
GATEWAY_KEYS_FAULTS = Metric(
    "sluice_gateway_keys_faults_total",
    "counter",
    "Keys files that could not be used, so that the last good one stayed.",
)
GATEWAY_LIMITS_SHARED = Metric(
    "sluice_gateway_limits_shared",
    "gauge",
    "1 while Redis shares the tenants' limits among gateways, 0 while each has its part.",
)
GATEWAY_LIMIT_FAULTS = Metric(
    "sluice_gateway_limit_faults_total",
    "counter",
    "Times the limits could not be settled with Redis, by cause; each gateway has its part then.",
    ("cause",),
)
GATEWAY_BODY_BYTES = Metric(
    "sluice_gateway_body_bytes",
    "gauge",
    "Bytes of request bodies that are coming in or being answered; of small ones that came in one"
    " piece, none.",
)
GATEWAY_CONNECTIONS = Metric("sluice_gateway_connections", "gauge", "Client connections open now.")
GATEWAY_CONNECTIONS_CUT = Metric(
    "sluice_gateway_connections_cut_total",
    "counter",
    "Client connections that the gateway ended, by cause: idle, stalled, evicted or an error code.",
    ("cause",),
)
GATEWAY_REPEATS = Metric(
    "sluice_gateway_idempotent_requests_total",
    "counter",
    "Requests with an Idempotency-Key, by outcome: first, joined, replayed or refused.",
    ("outcome",),
)
GATEWAY_DISCOVERY_AGE = Metric(
    "sluice_gateway_discovery_age_seconds",
    "gauge",
    "Time since the service table was last read successfully.",
)
GATEWAY_PROCESSES = Metric(
    "sluice_gateway_processes",
    "gauge",
    "Processes that serve now; with `--processes` above 1 only.",
)
GATEWAY_PROCESS_ENDS = Metric(
    "sluice_gateway_process_ends_total",
    "counter",
    "Processes that ended unasked and were replaced; with `--processes` above 1 only.",
)

# worker ------------------------------------------------------------------------------------------

WORKER_REQUESTS = Metric(
    "sluice_worker_requests_total",
    "counter",
    "Requests answered, by outcome.",
    ("route", "status"),
)
WORKER_INPUTS = Metric("sluice_worker_inputs_total", "counter", "Inputs computed.", ("task",))
WORKER_TOKENS = Metric(
    "sluice_worker_tokens_total", "counter", "Tokens computed, padding not included.", ("task",)
)
WORKER_PADDING = Metric(
    "sluice_worker_padding_tokens_total", "counter", "Padding computed beside the tokens."
)
WORKER_QUEUE_SECONDS = Metric(
    "sluice_worker_queue_duration_seconds",
    "histogram",
    "Time an input waited before its batch began.",
    (),
    SECONDS,
)
WORKER_BATCH_SECONDS = Metric(
    "sluice_worker_batch_duration_seconds", "histogram", "Time one batch took.", (), SECONDS
)
WORKER_BATCH_TOKENS = Metric(
    "sluice_worker_batch_tokens",
    "histogram",
    "Tokens in one batch.",
    (),
    (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
)
WORKER_TOKENIZE_SECONDS = Metric(
    "sluice_worker_tokenize_duration_seconds",
    "histogram",
    "Time to tokenise one request.",
    (),
    SECONDS,
)
WORKER_FIRST_TOKEN_SECONDS = Metric(
    "sluice_worker_time_to_first_token_seconds",
    "histogram",
    "Time from a generation's queueing to its first token.",
    (),
    SECONDS,
)
WORKER_NEXT_TOKEN_SECONDS = Metric(
    "sluice_worker_inter_token_seconds",
    "histogram",
    "Time between two steps that wrote for the same generation.",
    (),
    SECONDS,
)
WORKER_WRITTEN = Metric("sluice_worker_written_tokens_total", "counter", "Tokens generated.")
WORKER_FOUND = Metric(
    "sluice_worker_prefix_tokens_total",
    "counter",
    "Tokens of prompts that were found computed already.",
)
WORKER_PREEMPTIONS = Metric(
    "sluice_worker_preemptions_total",
    "counter",
    "Generations that gave their place back for a while, because keys and values filled it.",
)
WORKER_CAPTURES = Metric(
    "sluice_worker_step_captures_total",
    "counter",
    "Steps captured for replay on a GPU, by outcome; after a failed one all run eagerly.",
    ("outcome",),
)
WORKER_KV_USE = Metric(
    "sluice_worker_kv_use_ratio",
    "gauge",
    "Share of the room for keys and values that running generations hold.",
)
WORKER_WAITING = Metric("sluice_worker_waiting", "gauge", "Inputs waiting for a batch.")
WORKER_RUNNING = Metric("sluice_worker_running", "gauge", "Inputs in the batch being computed.")
WORKER_BACKLOG = Metric(
    "sluice_worker_backlog_seconds", "gauge", "Predicted time to finish all accepted work."
)
WORKER_REFUSED = Metric(
    "sluice_worker_refused_total", "counter", "Requests refused, by reason.", ("reason",)
)
WORKER_READY = Metric("sluice_worker_ready", "gauge", "1 when the worker takes requests.")
WORKER_INFO = Metric(
    "sluice_worker_info",
    "gauge",
    "Always 1; what this worker is.",
    ("version", "model", "revision", "answer_digest", "dtype", "device", "threads", "engine"),
)

# operator ----------------------------------------------------------------------------------------

OPERATOR_API_REQUESTS = Metric(
    "sluice_operator_api_requests_total",
    "counter",
    "Calls to the API server, watches not counted; the code is none when no answer came.",
    ("verb", "resource", "code"),
)
OPERATOR_API_SECONDS = Metric(
    "sluice_operator_api_request_duration_seconds",
    "histogram",
    "Time of one call to the API server.",
    ("verb",),
    SECONDS,
)
OPERATOR_QUEUE_DEPTH = Metric(
    "sluice_operator_queue_depth", "gauge", "Services that wait for a reconcile."
)
OPERATOR_QUEUE_AGE = Metric(
    "sluice_operator_queue_age_seconds", "gauge", "How long the first of them has waited."
)
OPERATOR_RECONCILES = Metric(
    "sluice_operator_reconciles_total",
    "counter",
    "Reconciles, by outcome (done, failed, broken, fenced).",
    ("outcome",),
)
OPERATOR_RECONCILE_SECONDS = Metric(
    "sluice_operator_reconcile_duration_seconds", "histogram", "Time of one.", (), SECONDS
)
OPERATOR_LEADER = Metric(
    "sluice_operator_leader", "gauge", "1 while this replica holds the lease and may write."
)
OPERATOR_LEADER_CHANGES = Metric(
    "sluice_operator_leader_changes_total",
    "counter",
    "Times this replica began or ceased to lead.",
    ("to",),
)
OPERATOR_SERVICES = Metric(
    "sluice_operator_services", "gauge", "InferenceServices in the watches' cache."
)
OPERATOR_WATCH_EVENTS = Metric(
    "sluice_operator_watch_events_total", "counter", "Watch events received, by kind.", ("kind",)
)
OPERATOR_AUDIT_FINDINGS = Metric(
    "sluice_operator_audit_findings_total",
    "counter",
    "Objects about which the watches' cache was wrong (gone, missing, stale).",
    ("kind", "finding"),
)
OPERATOR_SYNCED = Metric(
    "sluice_operator_synced", "gauge", "1 once the cache holds everything a list shows."
)
OPERATOR_EVENTS_DROPPED = Metric(
    "sluice_operator_events_dropped_total",
    "counter",
    "Kubernetes Events that were not posted because there were too many.",
)

# scaling -----------------------------------------------------------------------------------------

SCALING_DESIRED = Metric(
    "sluice_scaling_desired_replicas",
    "gauge",
    "Replicas this replica of the operator would have; the leader's number is written.",
    ("namespace", "service", "revision"),
)
SCALING_ARRIVALS = Metric(
    "sluice_scaling_arrivals_per_second",
    "gauge",
    "Requests a second that are planned for, answers from the cache not counted.",
    ("namespace", "service", "revision"),
)
SCALING_CAPACITY = Metric(
    "sluice_scaling_replica_capacity_per_second",
    "gauge",
    "Requests a second that one replica is taken to do; absent while unknown.",
    ("namespace", "service", "revision"),
)
SCALING_HELD = Metric(
    "sluice_scaling_held_requests",
    "gauge",
    "Requests that wait in gateways for a worker.",
    ("namespace", "service", "revision"),
)
SCALING_FORESEEN = Metric(
    "sluice_scaling_foreseen_per_second",
    "gauge",
    "Requests a second that a climb or other days let expect; 0 for none.",
    ("namespace", "service", "revision"),
)
SCALING_CHANGES = Metric(
    "sluice_scaling_changes_total",
    "counter",
    "Decisions for another number of replicas, by the rule that made them.",
    ("rule",),
)
SCALING_GATEWAYS = Metric(
    "sluice_scaling_gateways",
    "gauge",
    "Gateways whose demand is read (heard), and those that cannot be reached (unheard).",
    ("state",),
)
SCALING_RECORDS = Metric(
    "sluice_scaling_demand_records_total", "counter", "Demand records received from gateways."
)
SCALING_FEED_FAILURES = Metric(
    "sluice_scaling_demand_failures_total",
    "counter",
    "Times a gateway's demand stream ended or could not be opened, by cause"
    " (refused, silent, broken, garbled).",
    ("cause",),
)
METRICS_API_REQUESTS = Metric(
    "sluice_metrics_api_requests_total",
    "counter",
    "Requests to custom.metrics.k8s.io answered here, by HTTP status.",
    ("code",),
)
METRICS_API_SECONDS = Metric(
    "sluice_metrics_api_request_duration_seconds",
    "histogram",
    "Time to answer one.",
    (),
    SECONDS,
)
METRICS_API_AVAILABLE = Metric(
    "sluice_metrics_api_available",
    "gauge",
    "1 while the API server sends requests for custom.metrics.k8s.io here.",
)
METRICS_API_EXPIRY = Metric(
    "sluice_metrics_api_certificate_expiry_timestamp_seconds",
    "gauge",
    "When the serving certificate expires, in Unix time.",
)


ALL: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
