"""The printed curl lines: one per task, the last again with its headers."""

import json
import shlex

import pytest

from sluice_api.routes import POST_ROUTES
from sluice_api.tasks import Task
from sluice_cli.up.quickstart import curl_lines

URL = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("tasks", "paths"),
    [
        ([Task.EMBEDDINGS, Task.ZERO_SHOT], ["/v1/embeddings", "/v1/classify", "/v1/classify"]),
        ([Task.CLASSIFICATION], ["/v1/classify", "/v1/classify"]),
        ([Task.ZERO_SHOT], ["/v1/classify", "/v1/classify"]),
        ([Task.EMBEDDINGS], ["/v1/embeddings", "/v1/embeddings"]),
        ([], []),
    ],
)
def test_lines_are_shell_commands_whose_bodies_the_codecs_accept(
    tasks: list[Task], paths: list[str]
) -> None:
    lines = curl_lines(URL, "team/minilm", tasks)
    found = []
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "curl"
        path = words[2].removeprefix(URL)
        call = POST_ROUTES[path].parse(words[words.index("-d") + 1].encode())
        assert call.model == "team/minilm"
        assert call.task in tasks
        found.append(path)
    assert found == paths
    if lines:
        assert lines[-1].replace("-si", "-s") == lines[-2]


def test_labels_are_described() -> None:
    line = curl_lines(URL, "m", [Task.ZERO_SHOT])[0]
    labels = json.loads(shlex.split(line)[-1])["parameters"]["labels"]
    assert all(description for description in labels.values())
