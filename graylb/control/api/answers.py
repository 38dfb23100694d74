"""Bodies and answers of the admin API, for its OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Weight = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Revision = Annotated[int, Field(ge=0, lt=2**63)]
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]
Text = Annotated[str, Field(max_length=4096)]


class _Open(BaseModel):
    """Later releases of graylb may say more."""

    model_config = ConfigDict(extra="allow")


class _Body(BaseModel):
    """An unknown key is a slip of the pen."""

    model_config = ConfigDict(extra="forbid", strict=True)


# -- what is in force --------------------------------------------------------------------------------------------------


class Live(BaseModel):
    live: bool


class Ready(BaseModel):
    ready: bool


class SetReady(_Body):
    ready: bool = Field(description="false: `/ready` answers 503, and everything goes on as it was.")


class WorkerStatus(_Open):
    worker: int
    pid: int | None
    ready: bool
    revision: int | None = Field(description="That it has applied.")
    restarts: int
    recovered: float | None = Field(description="Seconds from its last death until it served again.")


class Refusal(BaseModel):
    """Why the newest configuration is not the one in force."""

    since: str
    errors: list[dict[str, Any]]


class Status(_Open):
    version: str
    document: str
    preset: str | None
    state: str
    revision: int
    digest: str
    applied_at: str
    refusal: Refusal | None
    warnings: list[dict[str, Any]]
    certificates: list[dict[str, Any]] = Field(description="In force: whose, until when, and what is wrong with that.")
    etcd: dict[str, Any] | None
    registries: list[dict[str, Any]] = Field(description="Of other frameworks, that instances come from.")
    pid: int
    ready: bool
    withdrawn: bool = Field(description="Somebody asked that `/ready` says no.")
    draining: bool
    rolling: bool
    roll_failed: str | None
    listeners: list[str]
    admin: str | None
    restart_needed: list[str] = Field(description="Settings that take effect at the next start or roll.")
    workers: list[WorkerStatus]
    ejected: list[dict[str, Any]] = Field(description="Instances that workers have ejected: which, why, until when.")


class ServiceInShort(_Open):
    name: str
    stable: str
    split: dict[str, float] | None
    rules: int
    instances: int
    versions: list[str]
    overridden: bool
    revision: int | None


class InstanceHealth(BaseModel):
    """What health checks have come to."""

    well: bool
    checks: int = Field(description="How often it was asked.")
    last_failure: str | None


class Ejection(BaseModel):
    """A worker gives the instance no requests for a time, for how it answers."""

    worker: int
    reason: str = Field(description="gateway-failures, 5xx, success-rate or latency.")
    why: str
    times: int = Field(description="Ejections in a row.")
    until: str


class InstanceAnswer(_Open):
    address: str
    version: str
    weight: int
    metadata: dict[str, str]
    zone: str
    health: InstanceHealth | None = Field(description="null: its service has no health check.")
    ejected: list[Ejection] = Field(description="By these workers.")


class ServiceAnswer(_Open):
    """One service as the workers have it."""

    name: str
    revision: int = Field(description="Of the whole configuration in force.")
    stable: str
    split: dict[str, float] | None
    sticky: list[dict[str, Any]]
    fallback: str
    policy: str
    rules: list[str] = Field(description="In the order in which they are tried.")
    lists: dict[str, int] = Field(description="How many ids each has.")
    instances: list[InstanceAnswer]
    timeouts: dict[str, Any]
    connections: dict[str, Any]
    tunnels: dict[str, Any]
    health: dict[str, Any]
    fault: dict[str, Any] | None
    mirror: dict[str, Any] | None
    limits: dict[str, Any]


class WorkerStats(BaseModel):
    worker: int
    stats: dict[str, Any] | None = Field(description="null: it does not answer.")


# -- what people change ------------------------------------------------------------------------------------------------


class Write(_Body):
    reason: Text = Field("", description="Why, for the history.")
    expected: Revision | None = Field(
        None, description="The revision that the change was made from; 409 when somebody changed the service since."
    )


class SplitBody(Write):
    weights: Annotated[dict[str, Weight], Field(min_length=1)]


class RuleBody(Write):
    rule: dict[str, Any] = Field(description="As in a document, with or without its `name`.")


class SettingsBody(Write):
    settings: dict[str, Any] = Field(description="As in a document, without split, rules, lists and instances.")


class ConfigBody(Write):
    items: dict[str, Any] = Field({}, description="Key (`services/NAME/PART…`) to value; null deletes the key.")
    texts: dict[str, str | None] = Field(
        {}, description="The same with the JSON text of each value: there 1.10 stays as it is written."
    )


class ApplyBody(_Body):
    document: dict[str, Any] | str = Field(description="A document, or its text in YAML or JSON.")
    prune: bool = Field(False, description="Delete rules and services that it does not have.")
    dry_run: bool = Field(False, description="Tell what would change, and change nothing.")
    reason: Text = ""
    expected: Revision | None = None


class RollbackBody(Write):
    to: Revision | None = Field(None, description="Default: what was in force before, so that twice is back.")


class OutcomeAnswer(BaseModel):
    """A change that was stored."""

    service: str
    revision: int
    former: str = Field(description="The service's split before, in words.")
    split: str
    keys: list[str] = Field(description="That were written.")
    note: str = ""
    applied: bool | None = Field(None, description="By every worker; null where nobody waited for that.")
    problem: str | None = Field(None, description="Why it is not applied.")


class ApplyAnswer(BaseModel):
    outcomes: list[OutcomeAnswer] = Field(description="One for each service that differs.")
    dry_run: bool


class SplitAnswer(BaseModel):
    service: str
    revision: int = Field(description="What `expected` may say.")
    weights: dict[str, float] | None = Field(description="null: everything to the stable version.")
    salt: str | None = None
    slots: str | None = None


class ItemAnswer(BaseModel):
    value: Any = None
    text: str | None = Field(None, description="With `?texts=true`, in place of the value: its JSON as it was written.")
    revision: int = Field(description="Of its newest change.")
    origin: str = Field(description="Where a person would edit it: `file`, or the store.")


class ConfigAnswer(BaseModel):
    revision: int = Field(description="What `expected` may say.")
    ordered: bool = Field(description="Rules are tried in this order, those of one priority; else by name.")
    note: str = Field(description="What a person has to know, such as that the document is not valid at present.")
    items: dict[str, ItemAnswer]


class DiffAnswer(BaseModel):
    changes: list[dict[str, Any]]
    callers: list[dict[str, Any]] = Field(description="Of each service: which share of callers changes version.")
    notes: list[str]


class HistoryEntry(_Open):
    service: str
    revision: int
    at: str
    who: str
    why: str
    action: str


# -- explain and process -----------------------------------------------------------------------------------------------


class Explain(_Body):
    """One request."""

    method: str = Field("GET", pattern="^[!-~]{1,64}$")
    host: str | None = Field(None, max_length=1024, description="Default: that of the headers, else localhost.")
    path: str = Field("/", pattern="^/", max_length=65536, description="With the query if there is one.")
    headers: dict[str, str] | list[Pair] = Field({}, description="A list of [name, value] where a name is repeated.")
    client_ip: str = "127.0.0.1"
    listener: str | None = Field(None, description="That it comes in by, where routes differ by it.")
    draw: int = Field(0, ge=0, lt=2**32, description="Which draw of a split without a sticky key.")
    pick: int = Field(0, ge=0, lt=2**32, description="Which pick among the instances of the version.")


class Earlier(BaseModel):
    rule: str
    reason: str


class Decision(_Open):
    outcome: str
    because: str
    revision: int
    service: str | None = None
    version: str | None = None
    instance: str | None = None
    fault: str | None = Field(None, description="What may be injected into such requests.")
    mirror: str | None = Field(None, description="Which requests of the service are copied, and where to.")
    limits: list[str] | None = Field(None, description="How many such requests there may be, one text for each limit.")
    retries: str | None = Field(None, description="When such a request is sent once more.")
    earlier_rules: list[Earlier]


class DrainBody(_Body):
    seconds: float | None = Field(
        None, ge=0, le=86400, allow_inf_nan=False, description="That requests may take. Default: as `run --drain`."
    )


class Draining(BaseModel):
    draining: bool
    seconds: float


class LogLevel(_Body):
    level: Literal["debug", "info", "warning", "error"]
