"""What the contract says that one model may do beside its task holds for every kind of model."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest

from sluice_api.tasks import Task, one_model_does
from sluice_worker.models.description import Classifier, Description, Markers, Pooling
from sluice_worker.models.writer import describe_writer
from sluice_worker.tasks import registry

BARE = Description(
    config={"vocab_size": 9, "hidden_size": 4},
    model_type="bert",
    max_tokens=16,
    head="none",
    pooling=None,
    classifier=None,
    mask_token=None,
    markers=None,
    lower_case=False,
    token_types=False,
)
MARKERS = Markers(("[", "]"), ("<", ">"))


def descriptions() -> Iterator[Description]:
    yield replace(BARE, pooling=Pooling(mode="mean", normalize=True))
    yield replace(BARE, head="mask")
    for labels in (("a",), ("a", "b"), ("entailment", "contradiction")):
        infers = len(labels) == 2 and labels[0] == "entailment"
        classifier = Classifier(labels, "softmax", *((0, 1) if infers else ()))
        yield replace(BARE, head="token", classifier=classifier)
        for markers in (None, MARKERS):
            yield replace(BARE, head="sequence", classifier=classifier, markers=markers)
    yield replace(BARE, head="span")


def test_every_model_that_reads() -> None:
    seen: set[Task] = set()
    for description in descriptions():
        tasks = [m.TASK for m in registry._MODULES if m.offers(description)]
        assert tasks
        for served in tasks:
            hidden = {Task.CLASSIFICATION} if served is Task.ZERO_SHOT else set()
            assert set(tasks) - hidden <= set(one_model_does(served)), description
        seen |= set(tasks)
    assert seen == {module.TASK for module in registry._MODULES}


@pytest.mark.parametrize("module", registry._WRITING, ids=lambda module: str(module.TASK))
def test_every_model_that_writes_is_served_for_one_task(module: Any) -> None:
    config = {
        "model_type": "t5",
        "decoder_start_token_id": 0,
        "task_specific_params": {"summarization": {}, "translation_en_to_de": {}},
    }
    writer = describe_writer(config, None, module.TASK)
    material = cast(Any, type("Material", (), {"writer": writer}))
    offered = {each.TASK for each in registry._WRITING if each.offers(material)}
    assert offered == {module.TASK} == set(one_model_does(module.TASK)) & offered
