"""How many cases the suite has: distinct pairs of a route and a behaviour, none counted twice.

``docs/http.md`` says how many there are for each route.
"""

import re
from collections import Counter
from pathlib import Path

from tests.conformance import test_openai_client, test_routes, test_v2_client

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


def pairs() -> set[tuple[str, str]]:
    openai = test_openai_client
    return {*openai.CASES, *openai.ASYNC_CASES, *test_routes.CASES, *test_v2_client.CASES}


def test_there_are_enough_cases() -> None:
    assert len(pairs()) >= 250


def test_the_page_counts_them() -> None:
    table = PAGE.read_text().partition("| route | cases |")[2].partition("\n\n")[0]
    listed = {
        route: int(count) for route, count in re.findall(r"^\| `(.+?)` \| (\d+) \|", table, re.M)
    }
    counted = Counter(route for route, _ in pairs())
    assert listed == counted, "\n" + "\n".join(
        f"| `{route}` | {count} |" for route, count in sorted(counted.items())
    )
