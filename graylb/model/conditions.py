"""`match`: which requests a rule or a route is for. Shapes and values; `build` makes snapshot conditions of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Union

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from graylb.model import values
from graylb.model.base import OneKey, Part
from graylb.model.problems import shown
from graylb.model.values import deeper, fault


class Operators(OneKey):
    """How one value of a request is tested: a mapping of exactly one operator."""

    noun: ClassVar[str] = "operator"

    exact: values.Text | None = Field(default=None, description="The whole value, case included.")
    prefix: values.Filled | None = Field(
        default=None, description="The value's beginning; for `path` by whole elements: `/abc` does not match `/abcd`."
    )
    suffix: values.Filled | None = Field(default=None, description="The value's end.")
    regex: values.Regex | None = Field(
        default=None, description="A regular expression in RE2 syntax (linear time) that must match the whole value."
    )
    present: values.Bool | None = Field(default=None, description="Whether there is a value at all; it may be empty.")
    in_: values.TextsOrList | None = Field(
        default=None, alias="in", description="One of these texts, or of the service's list of that name."
    )
    number: values.NumberRange | None = Field(
        default=None, description="A plain decimal number within the range, e.g. `>=10,<100`."
    )
    semver: values.SemverRange | None = Field(default=None, description="A SemVer within the range, e.g. `>=1.2,<2`.")
    not_: Value | None = Field(default=None, alias="not", description="The contrary; true for an absent value too.")


def _from_shorthand(value: Any) -> Any:
    if isinstance(value, dict | Operators):
        return value
    return {"in": value} if isinstance(value, list | tuple) else {"exact": value}


_Scalar = Annotated[Any, WithJsonSchema(values.SCALAR)]
_Written = Union[_Scalar, list[_Scalar], Operators]  # noqa: UP007
Value = Annotated[Operators, BeforeValidator(_from_shorthand, json_schema_input_type=_Written)]
"""A bare value (`exact`), a list (`in`), or an operator."""
Operators.model_rebuild()


def _fitted(check: Callable[[Any], str], *operators: str, lists: bool = True) -> AfterValidator:
    """For a kind of value with a form of its own: only these operators, and `check` for each whole text.

    Only paths know `prefix`.
    """

    def fit(tested: Operators) -> Operators:
        ((operator, value),) = tested.given().items()
        with deeper(operator):
            if operator not in operators:
                raise fault(f"one of {', '.join(operators)}", f"operator {operator} cannot be used here")
            if operator == "not":
                return tested.model_copy(update={"not_": fit(value)})
            if operator == "in" and isinstance(value, str):
                if not lists:
                    raise fault("a list of values written here", "named lists cannot be used here")
            elif operator == "in":
                return tested.model_copy(update={"in_": tuple(values.each(value, check))})
            elif operator == "exact":
                return tested.model_copy(update={"exact": check(value)})
            elif operator == "prefix":
                return tested.model_copy(update={"prefix": values.path_prefix(value)})
        return tested

    return AfterValidator(fit)


def _no_named_list(tested: Operators) -> Operators:
    """For routes, which have no lists."""
    if isinstance(tested.in_, str):
        with deeper("in"):
            raise fault("a list of values written here", "only rules can use a service's lists")
    if tested.not_ is not None:
        with deeper("not"):
            _no_named_list(tested.not_)
    return tested


def _each_once(names: Any) -> Any:
    """Header names differ by more than case."""
    seen: dict[str, str] = {}
    for name in names if isinstance(names, dict) else ():
        if (first := seen.setdefault(name.lower(), name)) != name:
            with deeper(name):
                raise fault("each header once", f"the same header as {shown(first)}")
    return _not_empty(names)


def _not_empty(names: Any) -> Any:
    if names == {}:
        raise fault("at least one name")
    return names


_HeaderMap = BeforeValidator(_each_once)
_NameMap = BeforeValidator(_not_empty)

Headers = Annotated[dict[values.HeaderKey, Value], _HeaderMap]
Names = Annotated[dict[values.FilledKey, Value], _NameMap]
_RouteValue = Annotated[Value, AfterValidator(_no_named_list)]
RouteHeaders = Annotated[dict[values.HeaderKey, _RouteValue], _HeaderMap]
RouteQuery = Annotated[dict[values.FilledKey, _RouteValue], _NameMap]


class GrpcMatch(Part):
    """Conditions on gRPC requests (content-type `application/grpc…`)."""

    service: Value | None = Field(default=None, description="The service, `pkg.Service` of `/pkg.Service/Method`.")
    method: Value | None = Field(default=None, description="The method, `Method` of `/pkg.Service/Method`.")

    @model_validator(mode="after")
    def _not_empty(self) -> GrpcMatch:
        if not self.model_fields_set:
            raise fault("service, method or both")
        return self


class Conditions(Part):
    """Tests of one request; all that are given must hold."""

    path: Annotated[Value, _fitted(values.path, "exact", "prefix", "suffix", "regex", "in", "not")] | None = Field(
        default=None, description="The path as received, without the query."
    )
    method: Annotated[Value, _fitted(values.method, "exact", "in", "not", lists=False)] | None = Field(
        default=None, description="The request method, in capitals."
    )
    headers: Headers | None = Field(default=None, description="Header name (any case) to test.")
    cookies: Annotated[dict[values.TokenKey, Value], _NameMap] | None = Field(
        default=None, description="Cookie name to test; the first cookie of a name counts."
    )
    query: Names | None = Field(
        default=None, description="Query parameter to test of its percent-decoded value; the first of a name counts."
    )
    metadata: Headers | None = Field(default=None, description="gRPC metadata name to test; only on gRPC requests.")
    grpc: GrpcMatch | None = Field(default=None, description="gRPC service and method; only on gRPC requests.")
    client_ip: Annotated[Value, _fitted(values.network, "exact", "in", "not", lists=False)] | None = Field(
        default=None, description="The client's address: addresses and networks (CIDR)."
    )
    client_certificate: Value | None = Field(
        default=None,
        description="Who the client's verified TLS certificate names: its first URI (such as a SPIFFE ID), else its "
        "first DNS name, else its subject. Absent without one.",
    )
    api_version: Annotated[Value, _fitted(values.api_version, "exact", "in", "present", "not", lists=False)] | None = (
        Field(
            default=None,
            description="`v1` of `/api/v1/…` or of `Accept: application/vnd.NAME.v1+json`.",
        )
    )
    device: Annotated[Value, _fitted(values.device, "exact", "in", "present", "not", lists=False)] | None = Field(
        default=None, description="`mobile`, `tablet`, `desktop` or `bot`, by client hints and User-Agent."
    )
    mark: Value | None = Field(
        default=None,
        description="The version decided earlier in the chain: `x-service-version`, else W3C `baggage`.",
    )


class Group(Conditions):
    """Conditions of which not all may hold."""

    @model_validator(mode="after")
    def _not_empty(self) -> Group:
        if not self.model_fields_set:
            raise fault("at least one condition")
        return self


def _listed(groups: Any) -> Any:
    if isinstance(groups, list | tuple) and not groups:
        raise fault("conditions, or a list of at least one mapping of them")
    return groups if isinstance(groups, list | tuple) else [groups]


class Match(Conditions):
    """All conditions must hold, and none of the groups under `not`. An empty mapping matches every request."""

    not_: Annotated[tuple[Group, ...], BeforeValidator(_listed, json_schema_input_type=Group | list[Group])] | None = (
        Field(default=None, alias="not", description="Conditions of which not all may hold, or a list of such groups.")
    )
