"""The worker's metrics exist from the first scrape on, and hold nothing that callers invent."""

from sluice_api import metric_names
from sluice_worker.metrics import Metrics


def test_every_worker_metric_of_the_table_is_on_the_first_page() -> None:
    page = Metrics().page().decode()
    for metric in metric_names.ALL:
        if metric.name.startswith("sluice_worker_"):
            assert f"# TYPE {metric.name} {metric.kind}\n" in page, metric.name


def test_gauges_and_labelled_counters_stand_at_zero() -> None:
    page = Metrics().page().decode()
    assert "sluice_worker_waiting 0.0\n" in page
    assert "sluice_worker_backlog_seconds 0.0\n" in page
    assert 'sluice_worker_requests_total{route="/v1/embeddings",status="200"} 0.0\n' in page
    assert 'sluice_worker_refused_total{reason="overloaded"} 0.0\n' in page
    assert 'sluice_worker_inputs_total{task="zero-shot"} 0.0\n' in page


def test_watched_gauges_are_read_at_each_scrape() -> None:
    metrics, state = Metrics(), {"waiting": 3}
    metrics.watch(waiting=lambda: state["waiting"], running=lambda: 1, backlog=lambda: 0.5)
    assert "sluice_worker_waiting 3.0\n" in metrics.page().decode()
    state["waiting"] = 0
    page = metrics.page().decode()
    assert "sluice_worker_waiting 0.0\n" in page
    assert "sluice_worker_backlog_seconds 0.5\n" in page
