"""The `routes` part of a document, and the snapshot routes that it and the services' short forms make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from graylb.model import snapshot, values
from graylb.model.base import Part
from graylb.model.conditions import RouteHeaders, RouteQuery
from graylb.model.matching import conditions_of
from graylb.model.problems import Path
from graylb.model.services import ROOT, Hosts, ListenerNames, PathPattern, Paths, ServicePart
from graylb.model.values import deeper, fault


class RedirectPart(Part):
    """An answer that sends the client elsewhere. What is not given stays as the request has it."""

    status: values.RedirectStatus = Field(default=302, description="301, 302, 303, 307 or 308.")
    scheme: values.Scheme | None = Field(default=None, description="`http` or `https`.")
    host: values.RedirectHost | None = Field(default=None, description="Host name, with or without a port.")
    path: values.Path_ | None = Field(default=None, description="Takes the place of the whole path.")

    @model_validator(mode="after")
    def _leads_elsewhere(self) -> Self:
        if self.scheme is None and self.host is None and self.path is None:
            raise fault("at least one of scheme, host, path", "the redirect leads to itself")
        return self


class RewritePart(Part):
    """A change of the path before it goes to the instance."""

    prefix: values.PathPrefix = Field(description="Takes the place of the prefix that matched.")


class RoutePart(Part):
    """Hosts and paths to one service or redirect."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["service"]}, {"required": ["redirect"]}]})

    name: values.Name | None = Field(default=None, description="Unique. Default: `route-N`, counted from 1.")
    hosts: Hosts = Field(default=("*",), description="Host names, `*.suffix` (any depth), `*`.")
    paths: Paths = Field(default=(ROOT,), description="Paths; a bare text is a prefix.")
    methods: Annotated[tuple[values.Method, ...], values.AT_LEAST_ONE] | None = Field(
        default=None, description="Request methods, in capitals. Default: all."
    )
    headers: RouteHeaders | None = Field(default=None, description="Header name (any case) to test.")
    query: RouteQuery | None = Field(default=None, description="Query parameter to test.")
    listeners: ListenerNames | None = Field(
        default=None,
        description="Names of the listeners that the route is for; on others it is not there. Default: every one.",
    )
    service: values.Name | None = Field(default=None, description="The service. Either this or `redirect`.")
    redirect: RedirectPart | None = Field(default=None, description="Either this or `service`.")
    rewrite: RewritePart | None = Field(default=None, description="Only with `service` and prefixes as paths.")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.service is None) == (self.redirect is None):
            got = "the route has neither" if self.service is None else "the route has both"
            raise fault("either service or redirect", got)
        if self.rewrite is not None:
            with deeper("rewrite"):
                if self.redirect is not None:
                    raise fault("a rewrite only beside service", "a redirect cannot be rewritten")
                if any(path.prefix is None for path in self.paths):
                    raise fault("prefixes only in the route's paths", "only a prefix can be rewritten")
        return self


def expand(
    services: Mapping[str, ServicePart], routes: Mapping[int, RoutePart]
) -> Iterator[tuple[Path, snapshot.Route]]:
    """One snapshot route for each host and path, with the path of the part of the document that it comes from.

    routes: by their index in the document. A service that these name gets none of its own unless it has hosts, paths or
    listeners.
    """
    named = {route.service for route in routes.values()}
    for index, route in routes.items():
        for each in _product(_full(route, route.name or f"route-{index + 1}"), route.hosts, route.paths):
            yield ("routes", index), each
    for name, service in sorted(services.items()):
        if name not in named or service.has_route:
            short = snapshot.Route(name, "*", "prefix", "/", service=name, listeners=_listeners(service))
            for each in _product(short, service.hosts or ("*",), service.paths or (ROOT,)):
                yield ("services", name), each


def _full(route: RoutePart, name: str) -> snapshot.Route:
    """All but the hosts and paths."""
    return snapshot.Route(
        name=name,
        host="*",
        path_kind="prefix",
        path="/",
        match=snapshot.Match(all=_conditions(route)),
        service=route.service,
        redirect=snapshot.Redirect(**route.redirect.model_dump()) if route.redirect is not None else None,
        rewrite_prefix=route.rewrite.prefix if route.rewrite is not None else None,
        listeners=_listeners(route),
    )


def _listeners(part: RoutePart | ServicePart) -> tuple[str, ...]:
    return tuple(sorted(set(part.listeners or ())))


def _product(route: snapshot.Route, hosts: tuple[str, ...], paths: tuple[PathPattern, ...]) -> Iterator[snapshot.Route]:
    for host in hosts:
        for pattern in paths:
            kind, path = _kind(pattern)
            yield replace(route, host=host, path_kind=kind, path=path)


def _kind(pattern: PathPattern) -> tuple[Literal["exact", "prefix", "regex"], str]:
    if pattern.exact is not None:
        return "exact", pattern.exact
    if pattern.prefix is not None:
        return "prefix", pattern.prefix
    assert pattern.regex is not None
    return "regex", pattern.regex


def _conditions(route: RoutePart) -> tuple[snapshot.Condition, ...]:
    found = []
    if route.methods:
        methods = tuple(sorted(set(route.methods)))
        found.append(snapshot.Condition("method", "in" if len(methods) > 1 else "exact", methods))
    found += conditions_of("header", route.headers)
    found += conditions_of("query", route.query)
    return tuple(found)
