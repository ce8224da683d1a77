"""Asks the routes of the Open Inference Protocol, and what each task's tensors are."""

import json
import urllib.request
from typing import Any, Final

from tests.support.http_calls import post

SIGNATURES: Final[dict[str, tuple[list[str], dict[str, str]]]] = {
    "embeddings": (["text"], {"embedding": "FP32 2"}),
    "classification": (
        ["text"],
        {"label": "BYTES 1", "score": "FP32 1", "labels": "BYTES 2", "scores": "FP32 2"},
    ),
    "zero-shot": (
        ["text"],
        {"label": "BYTES 1", "score": "FP32 1", "labels": "BYTES 2", "scores": "FP32 2"},
    ),
    "token-classification": (
        ["text"],
        {
            "input": "INT64 1",
            "label": "BYTES 1",
            "score": "FP32 1",
            "start": "INT64 1",
            "end": "INT64 1",
            "text": "BYTES 1",
        },
    ),
    "question-answering": (
        ["question", "context"],
        {"text": "BYTES 1", "score": "FP32 1", "start": "INT64 1", "end": "INT64 1"},
    ),
    "fill-mask": (["text"], {"token": "INT64 3", "text": "BYTES 3", "score": "FP32 3"}),
    "rerank": (["query", "text"], {"relevance_score": "FP32 1"}),
    "translation": (["text"], {"text": "BYTES 1", "finish_reason": "BYTES 1"}),
    "summarization": (["text"], {"text": "BYTES 1", "finish_reason": "BYTES 1"}),
}
"""Task → the names of its inputs; and of each output, the datatype and how many dimensions."""


def tensor(name: str, *data: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": list(data)}


def infer(url: str, model: str, *inputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    """The data of each output by its name; each has as many elements as its shape says."""
    body = {"inputs": inputs, "parameters": parameters}
    reply = post(f"{url}/v2/models/{model}/infer", body)
    assert reply.status == 200, reply
    for output in reply["outputs"]:
        count = 1
        for size in output["shape"]:
            count *= size
        assert count == len(output["data"]), output
    return {output["name"]: output["data"] for output in reply["outputs"]}


def check_metadata(url: str, model: str, *tasks: str) -> None:
    """What the server tells of a model's tensors is that of ``tasks``, and it is ready."""
    with urllib.request.urlopen(f"{url}/v2/models/{model}", timeout=60) as response:
        told = json.load(response)
    inputs = [name for task in tasks for name in SIGNATURES[task][0]]
    assert {each["name"] for each in told["inputs"]} == {*inputs}, told
    assert {each["datatype"] for each in told["inputs"]} == {"BYTES"}, told
    expected = {name: kind for task in tasks for name, kind in SIGNATURES[task][1].items()}
    outputs = {o["name"]: f"{o['datatype']} {len(o['shape'])}" for o in told["outputs"]}
    assert outputs == expected, told
    with urllib.request.urlopen(f"{url}/v2/models/{model}/ready", timeout=60) as response:
        assert response.status == 200
