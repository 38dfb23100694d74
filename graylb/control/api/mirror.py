"""Both answers to mirrored requests, compared."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from graylb.control.api.context import ContextOf, Route, ServiceName
from graylb.control.api.failures import TARGET, Missing, Problem, json_response, refusal
from graylb.control.comparisons import Busy
from graylb.release.answer_diff import Mask, Settings

router = APIRouter(tags=["in force"], route_class=Route)


class Seen(BaseModel):
    kind: str = Field(description="`answer` (one of the two is missing), `status`, `header`, `json` or `body`.")
    where: str = Field(description="The header's name, or the place in the JSON, `[*]` for indices.")
    count: int
    request: str = Field(description="Request line of an example.")
    primary: str = Field(description="What the answer had there.")
    mirror: str = Field(description="What the copy's answer had there.")


class OfPath(BaseModel):
    path: str = Field(description="Method and path; `*` for what looks like an identifier.")
    compared: int
    different: int
    differences: list[Seen]


class DiffAnswer(BaseModel):
    service: str
    compared: int
    different: int
    bodies_not_compared: int = Field(description="Pairs with a body that is too long to be kept.")
    dropped: int = Field(description="Pairs that came faster than they could be compared.")
    paths: list[OfPath]


@router.get(
    "/services/{name}/mirror/diff",
    response_model=DiffAnswer,
    responses={
        **TARGET,
        409: {"model": Problem, "description": "The service mirrors nothing, or is being compared already."},
    },
)
async def diff(
    name: ServiceName,
    context: ContextOf,
    request: Request,
    seconds: Annotated[float, Query(gt=0, le=600, description="How long to look.")] = 30.0,
    requests: Annotated[int, Query(ge=1, le=100_000, description="End after so many.")] = 1000,
    header: Annotated[
        list[str] | None, Query(description="To compare; may be repeated. Default: content-type.", max_length=50)
    ] = None,
    mask: Annotated[
        list[str] | None,
        Query(description="Place in JSON bodies that may differ, such as `$.time` or `$..id`.", max_length=50),
    ] = None,
) -> Response:
    """Compares both answers to requests that are mirrored from now on; answers when the time or the number is over."""
    assert context.plane.applied is not None
    found = next((each for each in context.plane.applied.snapshot.services if each.name == name), None)
    if found is None:
        raise Missing(f"no service {name!r}")
    if found.mirror is None:
        return refusal(409, "no-mirror", f"service {name} mirrors nothing; set its `mirror`")
    headers = tuple(each.lower() for each in header) if header is not None else Settings().headers
    settings = Settings(headers, tuple(map(Mask.parse, mask or ())))
    try:
        told: dict[str, Any] = await context.tree.comparisons.run(
            name, seconds, requests, settings, request.is_disconnected
        )
    except Busy as error:
        return refusal(409, "busy", str(error))
    return json_response(told)
