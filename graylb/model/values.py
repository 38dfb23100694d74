"""The scalars of a document: what each accepts, its canonical form, and what an error says was expected.

Each type is a function over the raw value (the data of `source_map`), so that every error is worded here and none by
pydantic.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Annotated, Any

import re2
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from graylb.model.problems import Path, shown
from graylb.release import numbers, semver
from graylb.release.slots import Slots

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+:/@-]{0,127}")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 section 5.6.2
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]*")
_PATH = re.compile(r"/[!-~]*")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_SALT = re.compile(r"[!-~]{1,128}")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)")
_MODE = re.compile(r"(?:0o?)?([0-7]{3})")
_API_VERSION = re.compile(r"v?([0-9]{1,9})")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

MAX_WEIGHT = 1e12
MAX_INSTANCE_WEIGHT = 1_000_000
MAX_SECONDS = 7 * 86400.0
MAX_PATTERN = 4096
"""Characters of a regular expression or range."""
MAX_WORKERS = 1024
MAX_CLIENT_CONNECTIONS = 1_000_000
MAX_UNIX_PATH = 107
"""Bytes: what `sun_path` holds beside its closing NUL (unix(7))."""
DEVICES = ("mobile", "tablet", "desktop", "bot")


def fault(expected: str, message: str = "", suggestion: str | None = None, at: Path = ()) -> PydanticCustomError:
    """The error that `translate` turns into a ConfigError; `at`: where, from the value that is being validated."""
    context = {"expected": expected, "message": message, "suggestion": suggestion, "at": at}
    return PydanticCustomError("graylb", "a fault", context)


def is_local(address: str) -> bool:
    """Nobody beyond this machine can reach this socket address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def near(word: object, known: tuple[str, ...] | list[str]) -> str | None:
    """The known word that was probably meant."""
    found = get_close_matches(str(word), known, 1, 0.6)
    return found[0] if found else None


def text(value: Any) -> str:
    """Strings as they are; numbers as written; true and false."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(getattr(value, "text", value))
    raise fault("a text")


def _matching(pattern: re.Pattern[str], expected: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        try:
            found = text(value)
        except PydanticCustomError:
            raise fault(expected) from None
        if not pattern.fullmatch(found):
            raise fault(expected)
        return found

    return check


name = _matching(_NAME, "a name of letters, digits, '.', '_' and '-'")
A_VERSION = "a version: letters, digits and any of . _ + : / @ -"
version = _matching(_VERSION, A_VERSION)
salt = _matching(_SALT, "1 to 128 visible ASCII characters")
token = _matching(_TOKEN, "a name as HTTP allows it: letters, digits and any of !#$%&'*+.^_`|~-")
method = _matching(_METHOD, "a method in capitals, such as GET")


def is_name(key: str) -> bool:
    return _NAME.fullmatch(key) is not None


def is_version(text: str) -> bool:
    return _VERSION.fullmatch(text) is not None


def header_name(value: Any) -> str:
    """Lower case."""
    return token(value).lower()


def filled(value: Any) -> str:
    """Not empty."""
    if not (found := text(value)):
        raise fault("a text that is not empty")
    return found


def texts(value: Any) -> tuple[str, ...]:
    """At least one."""
    if not isinstance(value, list | tuple) or not value:
        raise fault("a list of at least one text")
    return tuple(each(value, text))


def each(items: Iterable[Any], check: Callable[[Any], str]) -> list[str]:
    """The checked items; a fault names the item's index."""
    checked = []
    for index, item in enumerate(items):
        with deeper(index):
            checked.append(check(item))
    return checked


@contextmanager
def deeper(key: str | int) -> Iterator[None]:
    """Faults found within are told to be at this key of what is being validated."""
    try:
        yield
    except PydanticCustomError as error:
        context: dict[str, Any] = dict(error.context or {})
        raise PydanticCustomError("graylb", "a fault", {**context, "at": (key, *context["at"])}) from None


def texts_or_list(value: Any) -> str | tuple[str, ...]:
    """What `in` takes: texts, or the name of one of the service's lists."""
    if isinstance(value, str):
        return name(value)
    if not isinstance(value, list | tuple) or not value:
        raise fault("a list of at least one text, or the name of one of the service's lists")
    return texts(value)


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise fault("true or false")
    return value


def _not_empty(value: Any) -> Any:
    if isinstance(value, list | tuple) and not value:
        raise fault("a list of at least one")
    return value


class _AtLeastOne:
    """pydantic's own bound would be checked after the items, and count the sound ones only."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_not_empty, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "minItems": 1}


AT_LEAST_ONE = _AtLeastOne()


def always_true(value: Any) -> bool:
    if value is not True:
        raise fault("true")
    return True


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def weight(value: Any) -> float:
    number = _number(value)
    if number is None or number < 0:
        raise fault("a number >= 0")
    if number > MAX_WEIGHT:
        raise fault(f"a number up to {MAX_WEIGHT:g}")
    return number


def integer(low: int, high: int) -> Callable[[Any], int]:
    """A whole number from low to high."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise fault(f"a whole number from {low} to {high}")
        return int(value)

    return check


instance_weight = integer(0, MAX_INSTANCE_WEIGHT)
priority = integer(-1_000_000, 1_000_000)


def workers(value: Any) -> int:
    """0 stands for `auto`."""
    if value == "auto":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_WORKERS:
        raise fault(f"a whole number from 1 to {MAX_WORKERS}, or auto")
    return int(value)


def client_connections(value: Any) -> int:
    """0 stands for `auto`."""
    if value == "auto":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_CLIENT_CONNECTIONS:
        raise fault(f"a whole number from 1 to {MAX_CLIENT_CONNECTIONS}, or auto")
    return int(value)


def mode(value: Any) -> int:
    """Permission bits: three octal digits, however YAML may take them."""
    found = _MODE.fullmatch(text(value)) if isinstance(value, str | int) else None
    if found is None:
        raise fault('permissions in octal, such as "0660"')
    return int(found[1], 8)


def duration(value: Any) -> float:
    """Seconds."""
    seconds = _quantity(value, _SECONDS)
    if seconds is None or not 0 < seconds <= MAX_SECONDS:
        raise fault("a time over 0 and up to 7 days: seconds, or a text such as 250ms, 5s, 2m, 1h")
    return seconds


def size(low: int, high: int) -> Callable[[Any], int]:
    """Bytes from low to high."""

    def check(value: Any) -> int:
        found = _quantity(value, _BYTES)
        if found is None or found != int(found) or not low <= found <= high:
            raise fault(f"a size from {low} to {high}: bytes, or a text such as 64KiB, 1MiB")
        return int(found)

    return check


def _quantity(value: Any, units: dict[str, Any]) -> float | None:
    if isinstance(value, str):
        parts = _QUANTITY.fullmatch(value)
        return _number(float(parts[1]) * units[parts[2]]) if parts and parts[2] in units else None
    return _number(value)


def pattern(value: Any) -> str:
    """A regular expression that RE2 compiles."""
    if not isinstance(value, str) or not value:
        raise fault("a regular expression")
    if len(value) > MAX_PATTERN:
        raise fault(f"a regular expression of at most {MAX_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(value, options=options)
    except re2.error as error:
        reason = error.args[0] if error.args else error
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        reason = " ".join(reason.split())  # it may quote a line break
        raise fault("a regular expression in RE2 syntax", f"got {shown(value)}: {reason}") from None
    return value


def _range(parse: Callable[[str], Any], kind: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        try:
            written = text(value)
        except PydanticCustomError:
            raise fault(kind) from None
        if len(written) > MAX_PATTERN:
            raise fault(f"{kind} of at most {MAX_PATTERN} characters")
        try:
            parse(written)
        except ValueError as error:
            message, _, expected = str(error).partition("; expected ")
            raise fault(expected or kind, message) from None
        return written

    return check


number_range = _range(numbers.parse_range, "a range of numbers such as '>=10,<100'")
semver_range = _range(semver.parse_range, "a SemVer range such as '>=1.2,<2'")


def path(value: Any) -> str:
    if not isinstance(value, str) or not _PATH.fullmatch(value) or "?" in value or "#" in value:
        raise fault("a path: '/' and then visible ASCII without '?' and '#', as it stands in requests")
    return value


def path_prefix(value: Any) -> str:
    """Without a slash at its end, which whole path elements make meaningless; `/` stays."""
    return path(value).rstrip("/") or "/"


def listen_address(value: Any) -> str:
    """`address:port`, canonical: an IP address, IPv6 in brackets; `localhost` becomes 127.0.0.1. Port 0 is allowed."""
    expected = "ADDRESS:PORT such as 127.0.0.1:8080 or [::1]:8080, with a port from 0 to 65535"
    host, port = _host_and_port(value, 0, expected)
    return _ip_and_port(host, port, expected)


def socket_address(value: Any) -> str:
    """As `listen_address`, or `unix:/path`."""
    return unix_address(value) if _is_unix(value) else listen_address(value)


def unix_address(value: str) -> str:
    """`unix:/path` as it is: no links are followed, so that a document means the same everywhere."""
    path_ = value.removeprefix("unix:")
    plain = path_.startswith("/") and not path_.endswith("/") and path_.isprintable() and " " not in path_
    if not plain or len(path_.encode(errors="surrogatepass")) > MAX_UNIX_PATH:
        raise fault(f"unix:/PATH, an absolute path of at most {MAX_UNIX_PATH} bytes without spaces")
    return value


def _is_unix(value: Any) -> bool:
    """`unix:80` is a port of a host of that name."""
    return isinstance(value, str) and value.startswith("unix:") and not value[5:].isdigit()


def instance_address(value: Any) -> str:
    """`host:port`, canonical: as `socket_address`, or a host name, which workers resolve."""
    if _is_unix(value):
        return unix_address(value)
    expected = "HOST:PORT such as 10.0.0.5:8080, [::1]:8080 or users-v1:8080, with a port from 1 to 65535"
    host, port = _host_and_port(value, 1, expected)
    name = host.lower().removesuffix(".")
    # a last label of digits is a mistyped IPv4 address, not a name (WHATWG URL standard, host parsing)
    numeric = name.rpartition(".")[2].isdigit()
    if name != "localhost" and _HOST.fullmatch(name) and not name.startswith("*") and len(name) <= 253 and not numeric:
        return f"{name}:{port}"
    return _ip_and_port(host, port, expected)


def _host_and_port(value: Any, lowest: int, expected: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or not host:
        raise fault(expected)
    if not lowest <= int(port) <= 65535:
        raise fault(expected)
    return host, int(port)


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}", re.ASCII)
"""Dotted decimal without leading zeros (RFC 3986, section 3.2.2): most addresses, told from others at once."""


def _ip_and_port(host: str, port: int, expected: str) -> str:
    if _IPV4.fullmatch(host):
        return f"{host}:{port}"
    bracketed = host.startswith("[") and host.endswith("]")
    local = host.lower().removesuffix(".") == "localhost"
    try:
        ip = ipaddress.ip_address("127.0.0.1" if local else host.strip("[]") if bracketed else host)
    except ValueError:
        raise fault(expected) from None
    if bracketed != (ip.version == 6) or getattr(ip, "scope_id", None):
        raise fault(expected)
    return f"[{ip}]:{port}" if bracketed else f"{ip}:{port}"


def network(value: Any) -> str:
    """CIDR, canonical; a bare address is a network of one."""
    expected = "an IP address or a network such as 10.0.0.0/8"
    if not isinstance(value, str) or "%" in value:
        raise fault(expected)
    try:
        loose = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise fault(expected) from None
    if loose.network_address != ipaddress.ip_interface(value).ip:
        raise fault("a network whose address has no bits beyond its prefix", suggestion=str(loose))
    return str(loose)


def host_pattern(value: Any) -> str:
    """Lower case: a host name or IP address, `*.suffix`, or `*`."""
    expected = "a host name without port, *.suffix, or *"
    if not isinstance(value, str):
        raise fault(expected)
    lowered = value.lower()
    if lowered == "*" or (_HOST.fullmatch(lowered) and len(lowered) <= 255):
        return lowered
    try:
        return f"[{ipaddress.IPv6Address(lowered.removeprefix('[').removesuffix(']'))}]"
    except ValueError:
        raise fault(expected) from None


def host_name(value: Any) -> str:
    """Lower case, without wildcard."""
    found = host_pattern(value)
    if "*" in found or "[" in found:
        raise fault("a host name without port")
    return found


def redirect_host(value: Any) -> str:
    """A host name or address, with or without port."""
    expected = "a host name, with or without a port"
    if not isinstance(value, str) or "*" in value:
        raise fault(expected)
    host, colon, port = ("", "", "") if value.endswith("]") else value.rpartition(":")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535):
        raise fault(expected)
    try:
        return f"{host_pattern(host)}:{int(port)}" if colon else host_pattern(value)
    except PydanticCustomError:
        raise fault(expected) from None


def api_version(value: Any) -> str:
    """`v1`, from `v1` or 1."""
    found = _API_VERSION.fullmatch(text(value)) if isinstance(value, str | int) else None
    if found is None:
        raise fault("an API version such as v1")
    return f"v{int(found[1])}"


def device(value: Any) -> str:
    if not isinstance(value, str) or value not in DEVICES:
        raise fault("one of mobile, tablet, desktop, bot", suggestion=near(value, DEVICES))
    return value


def scheme(value: Any) -> str:
    if value not in ("http", "https"):
        raise fault("http or https")
    return str(value)


def redirect_status(value: Any) -> int:
    if isinstance(value, bool) or value not in (301, 302, 303, 307, 308):
        raise fault("301, 302, 303, 307 or 308")
    return int(value)


def slots(value: Any) -> str:
    """Slot ownership, canonical."""
    try:
        return str(Slots.parse(text(value)))
    except ValueError as error:
        if isinstance(error, PydanticCustomError):
            raise
        message, _, expected = str(error).partition("; expected ")
        raise fault(expected, message) from None


def choice(*words: str) -> Callable[[Any], str]:
    """One of a few words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise fault(f"one of {', '.join(words)}", suggestion=near(value, words))
        return value

    return check


def keyed(check: Callable[[Any], str]) -> Callable[[Any], str]:
    """For the keys of a mapping: says that it is the key that is wrong."""

    def check_key(value: Any) -> str:
        try:
            return check(value)
        except PydanticCustomError as error:
            context: dict[str, Any] = dict(error.context or {})
            raise fault(context["expected"], f"got {shown(value)} as key") from None

    return check_key


SCALAR = {"type": ["string", "number", "boolean"]}
_TEXT = {"type": "string"}
_QUANTITY_SCHEMA = {"type": ["number", "string"]}

Text = Annotated[str, PlainValidator(text), WithJsonSchema(SCALAR)]
Filled = Annotated[str, PlainValidator(filled), WithJsonSchema(SCALAR)]
Texts = Annotated[tuple[str, ...], PlainValidator(texts), WithJsonSchema({"type": "array", "items": SCALAR})]
TextsOrList = Annotated[
    str | tuple[str, ...],
    PlainValidator(texts_or_list),
    PlainSerializer(lambda found: found if isinstance(found, str) else list(found)),
    WithJsonSchema({"anyOf": [{"type": "array", "items": SCALAR, "minItems": 1}, _TEXT]}),
]
Bool = Annotated[bool, PlainValidator(boolean), WithJsonSchema({"type": "boolean"})]
AlwaysTrue = Annotated[bool, PlainValidator(always_true), WithJsonSchema({"const": True})]
Name = Annotated[str, PlainValidator(name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]
NameKey = Annotated[str, PlainValidator(keyed(name)), WithJsonSchema({"type": "string"})]
Version = Annotated[str, PlainValidator(version), WithJsonSchema(SCALAR)]
VersionKey = Annotated[str, PlainValidator(keyed(version)), WithJsonSchema({"type": "string"})]
FilledKey = Annotated[str, PlainValidator(keyed(filled)), WithJsonSchema({"type": "string"})]
HeaderName = Annotated[str, PlainValidator(header_name), WithJsonSchema(_TEXT)]
HeaderKey = Annotated[str, PlainValidator(keyed(header_name)), WithJsonSchema(_TEXT)]
TokenName = Annotated[str, PlainValidator(token), WithJsonSchema(_TEXT)]
TokenKey = Annotated[str, PlainValidator(keyed(token)), WithJsonSchema(_TEXT)]
Method = Annotated[str, PlainValidator(method), WithJsonSchema(_TEXT)]
Salt = Annotated[str, PlainValidator(salt), WithJsonSchema(SCALAR)]
SlotsText = Annotated[str, PlainValidator(slots), WithJsonSchema(_TEXT)]
Weight = Annotated[float, PlainValidator(weight), WithJsonSchema({"type": "number", "minimum": 0})]
InstanceWeight = Annotated[
    int,
    PlainValidator(instance_weight),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_INSTANCE_WEIGHT}),
]
Priority = Annotated[int, PlainValidator(priority), WithJsonSchema({"type": "integer"})]
Workers = Annotated[
    int,
    PlainValidator(workers),
    PlainSerializer(lambda count: count or "auto"),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_WORKERS}, {"const": "auto"}]}),
]
ClientConnections = Annotated[
    int,
    PlainValidator(client_connections),
    PlainSerializer(lambda count: count or "auto"),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MAX_CLIENT_CONNECTIONS}, {"const": "auto"}]}
    ),
]
Duration = Annotated[float, PlainValidator(duration), WithJsonSchema(_QUANTITY_SCHEMA)]
Regex = Annotated[str, PlainValidator(pattern), WithJsonSchema({"type": "string", "format": "regex"})]
NumberRange = Annotated[str, PlainValidator(number_range), WithJsonSchema(SCALAR)]
SemverRange = Annotated[str, PlainValidator(semver_range), WithJsonSchema(SCALAR)]
Path_ = Annotated[str, PlainValidator(path), WithJsonSchema({"type": "string", "pattern": "^/"})]
PathPrefix = Annotated[str, PlainValidator(path_prefix), WithJsonSchema({"type": "string", "pattern": "^/"})]
SocketAddress = Annotated[str, PlainValidator(socket_address), WithJsonSchema(_TEXT)]
Mode = Annotated[
    int, PlainValidator(mode), PlainSerializer("{:04o}".format), WithJsonSchema({"type": ["string", "integer"]})
]
Network = Annotated[str, PlainValidator(network), WithJsonSchema(_TEXT)]
InstanceAddress = Annotated[str, PlainValidator(instance_address), WithJsonSchema(_TEXT)]
HostPattern = Annotated[str, PlainValidator(host_pattern), WithJsonSchema(_TEXT)]
HostName = Annotated[str, PlainValidator(host_name), WithJsonSchema(_TEXT)]
RedirectHost = Annotated[str, PlainValidator(redirect_host), WithJsonSchema(_TEXT)]
Scheme = Annotated[str, PlainValidator(scheme), WithJsonSchema({"enum": ["http", "https"]})]
RedirectStatus = Annotated[int, PlainValidator(redirect_status), WithJsonSchema({"enum": [301, 302, 303, 307, 308]})]
