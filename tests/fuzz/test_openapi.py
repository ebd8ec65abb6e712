"""schemathesis reads our OpenAPI page, and sends what fits it and what does not to every route.

Its own checks ask for no 5xx, documented statuses and content types alone, bodies as their schemas
say, 405 for other methods, and a refusal for what the page forbids. It is not asked whether all
that the page allows is accepted: what `x` a model takes, no page says. Each request with rows is
then aimed at one session that lives: refused, it leaves that where it was.
"""

import json
from typing import Any

import httpx
import schemathesis
from schemathesis import Case
from schemathesis.checks import CHECKS, load_all_checks

from service.protocols.openapi import native_paths
from tests.fuzz.conftest import FUZZ, VICTIM, Target

load_all_checks()
NOT_ASKED: list[Any] = CHECKS.get_by_names(["positive_data_acceptance"])
# A stream answers 200 and refuses line by line.
NOT_ASKED_OF_STREAMS: list[Any] = [*NOT_ASKED, *CHECKS.get_by_names(["negative_data_rejection"])]

schema = schemathesis.openapi.from_dict(
    {"openapi": "3.0.2", "info": {"title": "Carousel", "version": "1"}, "paths": native_paths()}
)


@schemathesis.serializer("application/x-ndjson")
def one_line(context: object, value: object) -> bytes:
    """A body of one line, of whatever was generated."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def test_the_page_that_is_fuzzed_is_the_servers(target: Target) -> None:
    """BentoML's page has every native route as we describe it."""
    page = target.client.get("/docs.json").json()
    assert {path: page["paths"][path] for path in native_paths()} == native_paths()


@schema.parametrize()
@FUZZ
def test_every_route_answers_as_its_page_says(case: Case[Any], target: Target) -> None:
    """Valid and invalid, in every place of a request."""
    response = case.call(base_url=target.server.url)
    excluded = NOT_ASKED_OF_STREAMS if case.path == "/stream" else NOT_ASKED
    case.validate_response(response, excluded_checks=excluded)
    assert "Traceback" not in response.text
    if case.path == "/predict" and isinstance(case.body, dict):
        aim(target, {**case.body, "session_id": VICTIM})
        aim(target, {**case.body, "session_id": VICTIM, "x": [[0.5]]})


def aim(target: Target, request: dict[str, Any]) -> None:
    """Send it to the victim, and see that a refusal changes nothing."""
    before = target.stand()
    response: httpx.Response = target.client.post("/predict", content=json.dumps(request))
    assert response.status_code < 500
    target.note(response.status_code, request, response.json())
    if response.status_code != 200:
        assert target.stand() == before
