"""Label selectors as Kubernetes' own parser reads them."""

import pytest

from sluice_operator.metrics_api.label_selectors import SelectorError, matches, parse

LABELS = {"app": "web", "sluice.dev/revision": "4f1c2ab9d0", "tier": "", "size": "12"}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("", True),
        ("  ", True),
        ("app=web", True),
        ("app==web", True),
        (" app = web , size=12", True),
        ("app=api", False),
        ("app!=api", True),
        ("app!=web", False),
        ("gone!=x", True),
        ("sluice.dev/revision=4f1c2ab9d0", True),
        ("app in (web,api)", True),
        ("app in (api)", False),
        ("app notin (api, db),size", True),
        ("app notin (web)", False),
        ("gone notin (x)", True),
        ("app", True),
        ("gone", False),
        ("!gone", True),
        ("!app", False),
        ("tier=", True),
        ("app=", False),
        ("tier in (,x)", True),
        ("size>11", True),
        ("size>12", False),
        ("size<13,app", True),
        ("app>1", False),
        ("in in (x)", False),
        ("a=b,c in (x,y),!d", False),
    ],
)
def test_what_it_takes(text: str, holds: bool) -> None:
    assert matches(parse(text), LABELS) is holds


@pytest.mark.parametrize(
    "text",
    [
        *(
            "=",
            "a b",
            "a=b c",
            "a=,=",
            "a in x",
            "a in (x",
            "a in (x y)",
            "!a=b",
            "a,,b",
            ",",
            "a,",
        ),
        *("-a=b", "a/b/c=d", "a=b=c", "a=-b", "a>x", "a in ()x", "A.B/c=d", "x" * 5000, "!"),
    ],
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(SelectorError, match="selector"):
        parse(text)
