"""What lint can find: the catalogue of findings, in the words that the command and the guide print."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from graylb.release.witness import Request

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

Place = tuple[str | int, ...]
"""Keys from the document's root; items of a list by their `name` or `address`, or by index."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`severity`: unless a finding says otherwise. `meaning`: for the guide."""

    severity: Severity
    title: str
    meaning: str


CATALOGUE: dict[str, Kind] = {
    "GL001": Kind(
        "error",
        "a rule never wins",
        "Another rule is asked first and holds whenever this one does. A warning where that is so only because of what "
        "a list holds at present.",
    ),
    "GL002": Kind(
        "error",
        "a rule never holds",
        "Its conditions contradict one another, or no route brings such requests to the service.",
    ),
    "GL003": Kind(
        "warning",
        "a rule asks for a subset without instances",
        "No instance fits `to`, or all that do have weight 0. An error where no fallback helps: then it is a 503.",
    ),
    "GL004": Kind(
        "warning",
        "a split gives weight to a version without instances",
        "It has none, or all of them have weight 0. An error where no fallback helps: then it is a 503.",
    ),
    "GL005": Kind(
        "warning",
        "a version has instances and gets no request",
        "Neither the split nor any rule names it.",
    ),
    "GL006": Kind(
        "error",
        "a route is never taken",
        "A route that goes before it takes every such request, or its conditions contradict one another.",
    ),
    "GL007": Kind("warning", "a service without a route", "No request reaches it."),
    "GL008": Kind(
        "info",
        "two rules overlap",
        "Some request satisfies both and they lead to different targets, so their order decides; the finding has an "
        "example. Not told where priorities order them, nor where the first is a special case of the second. At most "
        "20 of a service are shown.",
    ),
    "GL009": Kind("warning", "a condition that holds for every value", "Such as the regular expression `.*`."),
    "GL010": Kind("warning", "a list is empty", "A rule refers to it: `in` never holds, its negation always does."),
    "GL011": Kind("warning", "a list is not used", "No rule refers to it."),
    "GL012": Kind("warning", "an id stands twice in a list", "It counts once."),
    "GL013": Kind(
        "warning",
        "the stable version gets nothing",
        "The split shares everything among other versions, yet the fallback leads to the stable one.",
    ),
    "GL014": Kind(
        "warning",
        "a version that is not the stable one has everything",
        "The release is through: say so with `stable`, so that the fallback and the next ramp begin there.",
    ),
    "GL015": Kind(
        "info",
        "a sticky key without effect",
        "No split of the service has several versions; or the source stands behind one that every request has.",
    ),
    "GL016": Kind(
        "warning",
        "a rule holds for every request",
        "Rules behind it and the service's split are never asked.",
    ),
    "GL017": Kind(
        "warning",
        "the stable version has no instance",
        "The fallback leads nowhere.",
    ),
    "GL018": Kind(
        "info",
        "not everything was compared",
        "There are too many rules that no index tells apart; shadowed ones may have been missed.",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` names the thing, `why` the reason, `hint` what to do. witness: a request that shows it."""

    id: str
    place: Place
    what: str
    why: str
    hint: str = ""
    severity: Severity = "warning"
    witness: Request | None = None

    def to_data(self) -> dict[str, Any]:
        data = asdict(self) | {"title": CATALOGUE[self.id].title, "place": list(self.place)}
        return data | {"witness": self.witness.to_data() if self.witness else None}


def finding(
    id: str,
    place: Place,
    what: str,
    why: str,
    hint: str = "",
    *,
    severity: Severity | None = None,
    witness: Request | None = None,
) -> Finding:
    return Finding(id, place, what, why, hint, severity or CATALOGUE[id].severity, witness)


def catalogue_markdown() -> str:
    """The table of the guide."""
    rows = [f"| {id} | {kind.severity} | {kind.title} | {kind.meaning} |" for id, kind in CATALOGUE.items()]
    return "\n".join(["| id | severity | finding | meaning |", "| --- | --- | --- | --- |", *rows])
