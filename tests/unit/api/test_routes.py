"""What the gateway sends to a worker instead of the caller's own body."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sluice_api import names
from sluice_api.routes import POST_ROUTES, canonical_body

TEXTS = st.text(min_size=1, max_size=20)
LABELS = st.lists(TEXTS, min_size=1, max_size=4, unique=True)
BODIES = st.one_of(
    st.tuples(
        st.just("/v1/embeddings"),
        st.fixed_dictionaries(
            {"input": TEXTS | st.lists(TEXTS, min_size=1)},
            optional={"model": TEXTS, "dimensions": st.integers(1, 99)},
        ),
    ),
    st.tuples(
        st.just("/v1/classify"),
        st.fixed_dictionaries(
            {"input": TEXTS},
            optional={
                "parameters": st.fixed_dictionaries(
                    {"labels": LABELS | st.dictionaries(TEXTS, TEXTS, min_size=1)},
                    optional={"top_k": st.integers(1, 9)},
                )
            },
        ),
    ),
    st.tuples(st.just("/predict"), st.fixed_dictionaries({"text": TEXTS})),
)


@given(BODIES, st.booleans())
def test_a_body_written_anew_fits_where_the_callers_fits(
    request: tuple[str, dict[str, Any]], ascii_only: bool
) -> None:
    path, members = request
    body = json.dumps(members, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    call = POST_ROUTES[path].parse(body)
    room = names.WORKER_MAX_BODY_BYTES - names.MAX_BODY_BYTES
    assert len(canonical_body(call, call.inputs)) <= len(body) + min(room, 256)
