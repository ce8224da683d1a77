"""What the pages for people list is complete, and the script they give to Argo CD is right."""

import re
from pathlib import Path
from typing import Any

import lupa
import pytest
import yaml

from sluice_api import errors
from sluice_api.service_status import REASONS
from sluice_api.tasks import DETERMINISM
from tests.support.chart import CHART
from tests.support.images.recipes import RECIPES

DOCS = Path(__file__).parents[2] / "docs"


def test_every_reason_is_explained_once_and_in_order() -> None:
    page = (DOCS / "ml-engineer.md").read_text()
    table = page.partition("| reason | what it means | what to do |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == REASONS


def test_every_error_code_that_is_named_exists() -> None:
    page = (DOCS / "application.md").read_text()
    table = page.partition("| status | code | do |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", table, re.MULTILINE)
    assert rows
    known = {error.code: error.status for error in errors.CATALOGUE.values()}
    for status, codes in rows:
        for code in re.findall(r"`(\w+)`", codes):
            assert known[code] == int(status), code


def test_the_page_about_the_cache_has_every_task_in_its_class() -> None:
    page = (DOCS / "caching.md").read_text()
    table = page.partition("| task | class |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \|", table, re.MULTILINE)
    assert rows == [(str(task), str(of_task)) for task, of_task in DETERMINISM.items()]


@pytest.mark.parametrize("page", ["README.md", "docs/platform-team.md"])
def test_images_are_pushed_under_the_names_that_the_chart_asks_for(page: str) -> None:
    text = (DOCS.parent / page).read_text()
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    pushed = re.findall(r"docker push (\S+)/sluice-\$part:(\S+)", text)
    assert pushed == [("registry.example.com/ai", version)]
    assert f"--set image.registry={pushed[0][0]}" in text
    parts = re.findall(r"^ +for part in (.+); do$", text, re.MULTILINE)
    assert parts == ["operator gateway worker"]
    for part in parts[0].split():
        assert RECIPES[part].reference == f"localhost/sluice-{part}:test"


# The health script --------------------------------------------------------------------------------


def condition(kind: str, status: str, reason: str = "Ready", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def resource(*conditions: dict[str, str], observed: int = 3) -> dict[str, Any]:
    status = {"observedGeneration": observed, "conditions": list(conditions)}
    return {"metadata": {"generation": 3}, "status": status}


READY = condition("Ready", "True")
FAILED = condition("Ready", "False", "ModelNotFound", "nothing at hf://a/b")


@pytest.mark.parametrize(
    ("obj", "status", "message"),
    [
        ({"metadata": {"generation": 1}}, "Progressing", "Sluice has not seen this yet"),
        (resource(READY, observed=2), "Progressing", "Sluice has not seen this yet"),
        (resource(), "Progressing", "Sluice has not seen this yet"),
        (resource(READY), "Healthy", "Ready: "),
        (
            resource(condition("Ready", "True", "Asleep", "nobody asks")),
            "Healthy",
            "Asleep: nobody asks",
        ),
        (resource(condition("Ready", "True", "Paused")), "Suspended", "Paused: "),
        (
            resource(condition("Ready", "False", "Starting"), condition("Reconciling", "True")),
            "Progressing",
            "Starting: ",
        ),
        (
            resource(READY, condition("Reconciling", "True"), condition("Stalled", "False")),
            "Progressing",
            "Ready: ",
        ),
        (
            resource(FAILED, condition("Stalled", "True"), condition("Reconciling", "True")),
            "Degraded",
            "ModelNotFound: nothing at hf://a/b",
        ),
        (resource(FAILED), "Degraded", "ModelNotFound: nothing at hf://a/b"),
    ],
)
def test_the_health_script_for_argo_cd(obj: dict[str, Any], status: str, message: str) -> None:
    page = (DOCS / "ml-engineer.md").read_text()
    (script,) = re.findall(r"^```lua\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    runtime = lupa.LuaRuntime()
    health = runtime.execute(f"return function(obj)\n{script}\nend")(
        runtime.table_from(obj, recursive=True)
    )
    assert (health["status"], health["message"]) == (status, message)
