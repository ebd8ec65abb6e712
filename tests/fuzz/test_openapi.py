"""schemathesis reads our OpenAPI page, and sends what fits it and what does not to every route.

Its own checks ask for no 5xx, documented statuses and content types alone, bodies as their schemas
say, 405 for other methods, and a refusal for what the page forbids. It is not asked whether all
that the page allows is accepted: what `x` a model takes, no page says. Each request that can be is
then aimed at one session that lives: that moves by what is accepted to move it, and nothing else.
"""

import json
import re
from copy import deepcopy
from typing import Any

import schemathesis
from schemathesis import Case
from schemathesis.checks import CHECKS, load_all_checks

from service.protocols.openapi import native_paths
from service.protocols.openapi_form import SECURITY_SCHEMES, TIMEOUT
from tests.fuzz.conftest import FUZZ, VICTIM, Target

load_all_checks()
NOT_ASKED: list[Any] = CHECKS.get_by_names(["positive_data_acceptance"])
UNKNOWN = "x-schemathesis-unknown-property"
# A stream answers 200 and refuses line by line, an array body by body.
NOT_ASKED_OF_STREAMS: list[Any] = [*NOT_ASKED, *CHECKS.get_by_names(["negative_data_rejection"])]

schema = schemathesis.openapi.from_dict(
    {
        "openapi": "3.0.2",
        "info": {"title": "Carousel", "version": "1"},
        "paths": native_paths(),
        "components": {"securitySchemes": SECURITY_SCHEMES},
    }
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
    """Valid and invalid, in every place of a request.

    But for a timeout that is one: 504 is then what was asked for.
    """
    case.body = deepcopy(case.body)  # it may be an example of the page, and is changed below
    if re.fullmatch(r"[1-9]\d*", str(case.headers.get(TIMEOUT["name"], ""))):
        del case.headers[TIMEOUT["name"]]
    response = case.call(base_url=target.server.url)
    # A header that nobody knows is no violation of anything.
    is_split = case.path == "/stream" or isinstance(case.body, list) or UNKNOWN in case.headers
    excluded = NOT_ASKED_OF_STREAMS if is_split else NOT_ASKED
    case.validate_response(response, excluded_checks=excluded)
    assert b"Traceback" not in response.content
    if aim(case):
        hit(case, target)
        for body in bodies_of(case):
            if "x" in body:
                body["x"] = [[0.5]]
        hit(case, target)


def aim(case: Case[Any]) -> bool:
    """Turn a request on the victim; whether it can be, and is not asked to drop it."""
    if case.method == "DELETE":
        return False
    if "session_id" in case.path_parameters:
        case.path_parameters = {**case.path_parameters, "session_id": VICTIM}
        return True
    aimed = [body for body in bodies_of(case) if "session_id" in body]
    for body in aimed:
        body["session_id"] = VICTIM
    return bool(aimed)


def bodies_of(case: Case[Any]) -> list[dict[str, Any]]:
    """The JSON objects that it sends: one, or the elements of an array."""
    several = case.body if isinstance(case.body, list) else [case.body]
    return [body for body in several if isinstance(body, dict)]


def hit(case: Case[Any], target: Target) -> None:
    """Send it, and see that only an accepted /predict moves the victim."""
    before = target.stand()
    response = case.call(base_url=target.server.url)
    assert response.status_code < 500
    assert b"Traceback" not in response.content
    if case.path == "/predict" and response.status_code == 200:
        bodies, replies = [case.body], [response.json()]
        if isinstance(case.body, list):
            bodies, (replies,) = list(case.body), replies
        for body, reply in zip(bodies, replies, strict=True):
            if "error" not in reply:
                target.note(200, body, reply)
    elif case.path == "/stream" and "error" not in (reply := response.json()):
        target.note(200, case.body, reply)
    else:
        assert target.stand() == before
