"""What the main path counts is what a scrape shows, in the terms of the table."""

from prometheus_client.parser import text_string_to_metric_families

from sluice_api import metric_names
from sluice_gateway.metrics import Metrics, Sample, ServiceSeries


def test_scrape_shows_what_was_counted() -> None:
    metrics, series = Metrics(), ServiceSeries()
    for seconds in (0.001, 0.002, 0.5, 100.0):
        series.answered("/v1/embeddings", 200, seconds)
    series.answered("/v1/embeddings", 504, 1.0)
    series.retries["reset"] += 2
    series.l1 = 3
    states = {"ready": 2, "starting": 1}
    series.streams, series.stream_chunks, series.tokens = 2, 30, 70
    series.streams_cut["slow"] += 1
    series.first_events.took(0.2)
    ready = {"done": 3, "pending": 1, "failed": 0}
    metrics.watch(lambda: [Sample(("ns", "emb", "stable"), series, 4, 5, states, ready)])
    metrics.cache_fault("timeout")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.page().decode())
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted(labels.items()))]

    of = {"namespace": "ns", "service": "emb", "track": "stable"}
    on = of | {"route": "/v1/embeddings"}
    assert value("sluice_gateway_requests_total", **on, status="200") == 4
    assert value("sluice_gateway_requests_total", **on, status="504") == 1
    bucket = "sluice_gateway_request_duration_seconds_bucket"
    assert value(bucket, **on, le="0.001") == 1
    assert value(bucket, **on, le="0.5") == 3
    assert value(bucket, **on, le="+Inf") == 5
    assert value("sluice_gateway_request_duration_seconds_sum", **on) == 101.503
    assert value("sluice_gateway_retries_total", **of, cause="reset") == 2
    assert value("sluice_gateway_cache_lookups_total", **of, result="l1") == 3
    assert value("sluice_gateway_in_flight", **of) == 4
    assert value("sluice_gateway_waiting", **of) == 5
    assert value("sluice_gateway_endpoints", **of, state="ready") == 2
    assert value("sluice_gateway_cache_faults_total", cause="timeout") == 1
    assert value("sluice_gateway_streams", **of) == 2
    assert value("sluice_gateway_stream_chunks_total", **of) == 30
    assert value("sluice_gateway_streams_cut_total", **of, cause="slow") == 1
    first = "sluice_gateway_stream_first_event_seconds"
    assert value(f"{first}_bucket", **of, le="0.1") == 0
    assert value(f"{first}_bucket", **of, le="0.25") == value(f"{first}_count", **of) == 1
    assert value("sluice_gateway_tokens_total", **of) == 70
    assert value("sluice_gateway_precomputed", **of, state="pending") == 1


def test_only_metrics_of_the_table() -> None:
    metrics = Metrics()
    nothing = Sample(("ns", "emb", "stable"), ServiceSeries(), 0, 0, {"ready": 0}, {"done": 0})
    metrics.watch(lambda: [nothing])
    known = {metric.name.removesuffix("_total") for metric in metric_names.ALL}
    families = text_string_to_metric_families(metrics.page().decode())
    assert {family.name for family in families} <= known
