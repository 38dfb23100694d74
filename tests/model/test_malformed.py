"""Malformed documents of every kind: each gives one clear error. The texts are in golden/malformed.txt."""

from __future__ import annotations

import pytest

from graylb.model.documents import load
from graylb.model.problems import ConfigErrors
from tests.model import goldens

BASE = "listeners: [{address: 127.0.0.1:8080}]\n"
INSTANCES = "instances: [{address: 127.0.0.1:9001, version: v1}, {address: 127.0.0.1:9002, version: v2}]"


def service(*lines: str) -> str:
    """A document whose one service has these lines, from line 4 on."""
    body = ["listeners: [{address: 127.0.0.1:8080}]", "services:", "  users:", *(f"    {line}" for line in lines)]
    rest = [] if any(line.startswith("stable") for line in lines) else ["    stable: v1"]
    if not any(line.startswith("instances") for line in lines):
        rest.append(f"    {INSTANCES}")
    return "\n".join([*body, *rest]) + "\n"


def rule(text: str) -> str:
    """A document with one rule, in line 5 from column 9 on."""
    return service("rules:", f"  - {{{text}}}")


def match(text: str) -> str:
    """A document with one match."""
    return rule(f"name: r, to: v1, match: {{{text}}}")


def route(*texts: str) -> str:
    """A document with these routes, from line 4 on."""
    body = [f"services: {{users: {{{INSTANCES}, stable: v1, paths: [/short]}}}}", "routes:"]
    return "\n".join([BASE.rstrip(), *body, *(f"  - {{{text}}}" for text in texts)]) + "\n"


def top(text: str) -> str:
    """A document with more at its top, in line 3."""
    return BASE + f"services: {{users: {{{INSTANCES}, stable: v1}}}}\n{text}\n"


def alone(text: str) -> str:
    """A document with only this beside the listener, in line 2."""
    return BASE + text + "\n"


def listener(text: str) -> str:
    """A document with this listener, in line 1 from column 13 on."""
    return f"listeners: [{text}]\nservices: {{users: {{stable: v1}}}}\n"


def sidecar(*lines: str, part: str = "service: users, version: v1, app: 127.0.0.1:8000") -> str:
    """A document of a sidecar, with more from line 2 on."""
    return "\n".join([f"sidecar: {{{part}}}", *lines]) + "\n"


CASES: dict[str, str | bytes] = {
    # the text
    "empty": "",
    "only-comment": "# nothing\n",
    "only-null": "null\n",
    "a-text": "hello\n",
    "a-list": "- 1\n",
    "a-number": "42\n",
    "bad-utf-8": b"listeners: \xff\n",
    "bad-utf-8-later": "a: 1\nü: ".encode() + b"\xc3(",
    "utf-16": "a: 1".encode("utf-16"),
    "control-character": "a: \x07\n",
    "nul": "a: \0\n",
    "surrogate": "a: \ud800\n",
    "tab": "services:\n\tusers: {}\n",
    "two-documents": "a: 1\n---\nb: 2\n",
    "unclosed": "listeners: [1, 2\n",
    "unclosed-quote": 'a: "x\nb: 1\n',
    "bad-indent": "a:\n    b: 1\n  c: 2\n",
    "colon-in-value": "a: b: c\n",
    "at-sign": "a: @b\n",
    "json-trailing": '{"listeners": []} x\n',
    "json-cut-off": '{"listeners": [{"address": "127.0.0.1:8080"}',
    "bad-escape": 'a: "\\q"\n',
    "lone-surrogate-escape": '{"a": "\\ud800"}',
    "duplicate-key": service("fallback: any", "fallback: strict"),
    "duplicate-service": BASE + "services:\n  a: {}\n  b: {}\n  a: {}\n",
    "list-as-key": "? [a]\n: 1\n",
    "mapping-as-key": "{{a: 1}: 2}\n",
    "unknown-tag": "a: !python/object:os.system x\n",
    "tag-that-does-not-fit": "a: !!int x\n",
    "alias-without-anchor": "a: *b\n",
    "alias-within-itself": "a: &a [*a]\n",
    "billion-laughs": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)),
    "too-deep": "[" * 1000,
    "too-deep-blocks": "- " * 1000 + "x",
    "merge-of-text": "a: {<<: x}\n",
    "directive": "%YAML 3.0\n---\na: 1\n",
    "null-value": service("fallback:"),
    "null-section": BASE + "services:\n",
    # shapes
    "unknown-top-key": top("servces: {}"),
    "unknown-key": service("stiky: [{header: a}]"),
    "unknown-key-far": service("colour: blue"),
    "unknown-listener-key": listener("{adress: 127.0.0.1:80}"),
    "missing-listeners": "services: {users: {stable: v1}}\n",
    "listeners-empty": listener(""),
    "listeners-a-mapping": "listeners: {address: 127.0.0.1:80}\nservices: {users: {stable: v1}}\n",
    "listener-a-text": listener("127.0.0.1:80"),
    "services-a-list": alone("services: [users]"),
    "service-a-text": alone("services: {users: 127.0.0.1:80}"),
    "bad-service-name": alone("services: {'a b': {stable: v1}}"),
    "nothing-routed": alone("services: {}"),
    "rules-a-mapping": service("rules: {a: {}}"),
    "instances-a-text": service("instances: 127.0.0.1:80"),
    # settings
    "listener-no-port": listener("{address: 127.0.0.1}"),
    "listener-bad-port": listener("{address: '127.0.0.1:70000'}"),
    "listener-name": listener("{address: 'example.com:80'}"),
    "listener-bare-ipv6": listener("{address: '::1:80'}"),
    "listener-port-alone": listener("{address: 8080}"),
    "listener-bad-role": listener("{address: 127.0.0.1:80, role: egde}"),
    "listener-twice": listener("{address: 127.0.0.1:80}, {address: 127.0.0.1:80}"),
    "listener-unix-relative": listener("{address: 'unix:run/x.sock'}"),
    "listener-unix-long": listener(f"{{address: 'unix:/{'x' * 107}'}}"),
    "listener-unix-directory": listener("{address: 'unix:/run/'}"),
    "listener-unix-space": listener("{address: 'unix:/a b'}"),
    "listener-unix-twice": listener("{address: 'unix:/a:0'}, {address: 'unix:/a:0', name: b}"),
    "listener-mode-word": listener("{address: 'unix:/a', mode: rw}"),
    "listener-mode-decimal": listener("{address: 'unix:/a', mode: '0890'}"),
    "listener-mode-of-port": listener("{address: 127.0.0.1:80, mode: '0660'}"),
    "listener-bad-name": listener("{address: 127.0.0.1:80, name: a/b}"),
    "listener-many-names": listener(", ".join(f"{{address: 127.0.0.1:{n}, name: l{n}}}" for n in range(1, 35))),
    "listener-protocols-word": listener("{address: 127.0.0.1:80, protocols: h2}"),
    "listener-health-without-h2": listener("{address: 127.0.0.1:80, protocols: [http/1.1], grpc_health: true}"),
    "listener-protocols-none": listener("{address: 127.0.0.1:80, protocols: []}"),
    "listener-protocols-other": listener("{address: 127.0.0.1:80, protocols: [http/1.1, h3]}"),
    "listener-protocols-twice": listener("{address: 127.0.0.1:80, protocols: [http/1.1, http/1.1]}"),
    "listener-proxy-word": listener("{address: 127.0.0.1:80, proxy_protocol: v2}"),
    "listener-proxy-list": listener("{address: 127.0.0.1:80, proxy_protocol: [10.0.0.0/8]}"),
    "listener-proxy-none": listener("{address: 127.0.0.1:80, proxy_protocol: {}}"),
    "listener-proxy-empty": listener("{address: 127.0.0.1:80, proxy_protocol: {trusted: []}}"),
    "listener-proxy-bits": listener("{address: 127.0.0.1:80, proxy_protocol: {trusted: [10.1.2.3/8]}}"),
    "listener-proxy-misspelt": listener("{address: 127.0.0.1:80, proxy_protocol: {trustd: [10.0.0.0/8]}}"),
    "listener-proxy-unix": listener("{address: 'unix:/a', proxy_protocol: {trusted: [10.0.0.0/8]}}"),
    "admin-unix": top("admin: {address: 'unix:admin.sock'}"),
    "admin-on-listener": top("admin: {address: 127.0.0.1:8080}"),
    "admin-a-text": top("admin: 127.0.0.1:9900"),
    "admin-no-address": top("admin: {}"),
    "admin-beyond-loopback": top("admin: {address: 0.0.0.0:9900}"),
    "admin-tls-without-clients": top("admin: {address: 0.0.0.0:9900, tls: {cert: a.pem, key: a.key}}"),
    "admin-tls-half": top("admin: {address: 127.0.0.1:9900, tls: {cert: a.pem}}"),
    "admin-tls-unix": top("admin: {address: 'unix:/a', tls: {cert: a.pem, key: a.key}}"),
    "admin-token-empty": top("admin: {address: 127.0.0.1:9900, token_file: ''}"),
    "workers-zero": top("workers: 0"),
    "workers-text": top("workers: many"),
    "workers-fraction": top("workers: 1.5"),
    "boolean-as-yes": top("decision_headers: yes"),
    "forwarding-word": top("forwarding: {x_forwarded: apend}"),
    "forwarding-boolean": top("forwarding: {forwarded: false}"),
    "duration-unit": top("limits: {idle_timeout: 5sec}"),
    "duration-zero": top("limits: {idle_timeout: 0}"),
    "duration-infinite": top("limits: {idle_timeout: .inf}"),
    "duration-boolean": top("limits: {idle_timeout: true}"),
    "size-unit": top("limits: {head_bytes: 64KB}"),
    "size-small": top("limits: {head_bytes: 10}"),
    "size-huge": top("limits: {uri_bytes: 1GiB}"),
    "pin-workers": top("pin_workers: 2"),
    "watchdog-short": top("watchdog: 100ms"),
    "watchdog-word": top("watchdog: never"),
    "watchdog-true": top("watchdog: true"),
    "client-connections-zero": top("limits: {client_connections: 0}"),
    "client-connections-word": top("limits: {client_connections: unlimited}"),
    "limit-fraction": top("limits: {headers: 1.5}"),
    # presets
    "preset-word": top("preset: egde"),
    "preset-word-alone": "preset: proxy\n",
    "preset-without-sidecar": "preset: sidecar\n",
    "preset-without-routes": "preset: edge\n",
    "preset-edge-with-sidecar": sidecar("preset: edge"),
    "preset-in-the-way": "preset: edge\nlisteners: [{address: 127.0.0.1:9900}]\nservices: {a: {stable: v1}}\n",
    "preset-in-the-way-of-admin": (
        "preset: edge\nadmin: {address: 0.0.0.0:8080, token_file: t}\nservices: {a: {stable: v1}}\n"
    ),
    "listeners-misspelt": "listener: [{address: 127.0.0.1:80}]\nservices: {a: {stable: v1}}\n",
    "sidecar-no-version": sidecar(part="service: users, app: 127.0.0.1:8000"),
    "sidecar-null": "sidecar:\n",
    "sidecar-a-text": "sidecar: users\n",
    "sidecar-no-app": sidecar(part="service: users, version: v1"),
    "sidecar-misspelt": sidecar(part="service: users, version: v1, ap: 127.0.0.1:8000"),
    "sidecar-bad-app": sidecar(part="service: users, version: v1, app: 8000"),
    "sidecar-long-name": sidecar(part=f"service: {'x' * 123}, version: v1, app: 127.0.0.1:8000"),
    "sidecar-namespace": sidecar(part="service: users, version: v1, app: 127.0.0.1:8000, namespace: '*'"),
    "sidecar-same-sides": sidecar(part="service: a, version: v1, app: 127.0.0.1:1, outbound: 0.0.0.0:15006"),
    "sidecar-in-the-way": sidecar("listeners: [{address: 127.0.0.1:15001}]"),
    "sidecar-host": sidecar(f"services: {{'a..b': {{{INSTANCES}, stable: v1}}}}"),
    "sidecar-local-instances": sidecar(f"services: {{users-local: {{{INSTANCES}, stable: v1}}}}"),
    "sidecar-local-route": sidecar("routes: [{redirect: {host: b}, listeners: [inbound]}]"),
    "sidecar-same-hosts": sidecar("services: {A: {stable: v1}, a: {stable: v1}}"),
    "sidecar-listener": sidecar("services: {a: {stable: v1, listeners: [inbuond]}}"),
    "sidecar-without-preset-sides": route("service: users, listeners: [inbound]"),
    # service
    "bad-host": service("hosts: [http://a]"),
    "host-with-port": service("hosts: ['a:80']"),
    "host-inner-wildcard": service("hosts: [a.*.b]"),
    "hosts-empty": service("hosts: []"),
    "hosts-a-text": service("hosts: a"),
    "host-unicode": service("hosts: [bücher.example]"),
    "path-no-slash": service("paths: [users]"),
    "path-with-query": service("paths: ['/a?b=1']"),
    "path-a-number": service("paths: [1]"),
    "path-two-kinds": service("paths: [{exact: /a, prefix: /b}]"),
    "path-no-kind": service("paths: [{}]"),
    "path-misspelt-kind": service("paths: [{prefx: /a}]"),
    "path-bad-regex": service("paths: [{regex: '/(a'}]"),
    "path-backreference": service(r"paths: [{regex: '/(a)\1'}]"),
    "paths-empty": service("paths: []"),
    "sticky-empty": service("sticky: []"),
    "sticky-a-text": service("sticky: [header]"),
    "sticky-two": service("sticky: [{header: a, cookie: b}]"),
    "sticky-false": service("sticky: [{client_ip: false}]"),
    "sticky-bad-header": service("sticky: [{header: 'x user'}]"),
    "sticky-bad-cookie": service("sticky: [{cookie: 'a=b'}]"),
    "sticky-twice": service("sticky: [{header: X-User}, {header: x-user}]"),
    "sticky-unknown": service("sticky: [{haeder: a}]"),
    "bad-fallback": service("fallback: stabel"),
    "bad-policy": service("policy: round_robin"),
    "bad-timeouts": service("timeouts: {connect: -1}"),
    "bad-stable": service("stable: 'v 1'"),
    "split-empty": service("split: {}"),
    "split-zero": service("split: {v1: 0, v2: 0}"),
    "split-negative": service("split: {v1: 95, v2: -5}"),
    "split-nan": service("split: {v1: .nan}"),
    "split-infinite": service("split: {v1: .inf}"),
    "split-text": service("split: {v1: 95%}"),
    "split-boolean": service("split: {v1: true}"),
    "split-a-list": service("split: [v1, v2]"),
    "split-huge": service("split: {v1: 1e300}"),
    "split-bad-version": service("split: {'v 1': 1}"),
    "split-slots-without-salt": service("split: {weights: {v1: 1}, slots: 'v1:0-9999'}"),
    "split-bad-slots": service("split: {weights: {v1: 1}, salt: a, slots: 'v1:0-99'}"),
    "split-slots-of-others": service("split: {weights: {v1: 1}, salt: a, slots: 'v1:0-4999 v2:5000-9999'}"),
    "split-full-misspelt": service("split: {wieghts: {v1: 1}}"),
    "split-bad-salt": service("split: {weights: {v1: 1}, salt: 'a b'}"),
    "stable-unknown": BASE + f"services: {{users: {{{INSTANCES}}}}}\n",
    "stable-unknown-nothing": alone("services: {users: {}}"),
    "connections-a-number": service("connections: 5"),
    "connections-misspelt": service("connections: {maximum: 5}"),
    "connections-negative": service("connections: {max: -1}"),
    "connections-queue": service("connections: {queue: many}"),
    "connections-timeout": service("connections: {queue_timeout: 0}"),
    "connections-proxy": service("connections: {proxy_protocol: v3}"),
    "connections-proxy-boolean": service("connections: {proxy_protocol: true}"),
    "connections-protocol": service("connections: {protocol: http2}"),
    "connections-streams": service("connections: {streams: 0}"),
    "mark-word": service("") + "mark: yes please\n",
    "mark-headers": service("") + "mark: {headers: x-lane}\n",
    "mark-header-twice": service("") + "mark: {headers: [x-lane, X-Lane]}\n",
    "mark-header-taken": service("") + "mark: {headers: [host]}\n",
    "mark-trusted": service("") + "mark: {trusted: [10.0.0.0/99]}\n",
    "mark-secret-missing": service("") + "mark: {signed: {header: x-s}}\n",
    "mark-secret-lost": service("") + "mark: {signed: {secret: nowhere}}\n",
    "mark-memory": service("") + "mark: {memory: 2h}\n",
    "mark-memory-text": service("") + "mark: {memory: always}\n",
    "mark-carry": service("mark: {carry: {v2: a mark}}"),
    "mark-otherwise": service("mark: {otherwise: any}"),
    "retries-status": service("retries: {grpc_status: [unavailabel]}"),
    "retries-ok": service("retries: {grpc_status: [ok]}"),
    "retries-word": service("retries: {grpc_status: unavailable}"),
    "retries-attempts": service("retries: {attempts: 9}"),
    "retries-on": service("retries: {on: [gateway-eror]}"),
    "retries-on-word": service("retries: {on: 5xx}"),
    "retries-statuses": service("retries: {statuses: [503, 200]}"),
    "retries-statuses-word": service("retries: {statuses: 503}"),
    "retries-method": service("retries: {methods: [GET, post]}"),
    "retries-no-methods": service("retries: {methods: []}"),
    "retries-backoff": service("retries: {backoff: {base: 1s}}"),
    "retries-budget": service("retries: {budget: {percent: 120}}"),
    "retries-budget-rate": service("retries: {budget: {min_per_second: -1}}"),
    "retries-try": service("retries: {per_try_timeout: soon}"),
    "retries-other-version": service("retries: {other_version: 1}"),
    "retries-buffer": service("retries: {buffer: 2MiB}"),
    "retries-hedge-bare": service("retries: {hedge: 100ms}"),
    "retries-hedge-delay": service("retries: {hedge: {delay: 2m}}"),
    "retries-hedge-alone": service("retries: {hedge: {delay: 100ms}, attempts: 1}"),
    "retries-hedge-late": service("retries: {hedge: {delay: 1s}, per_try_timeout: 500ms}"),
    "timeouts-request": service("timeouts: {request: -1}"),
    "warm-beyond-max": service("connections: {max: 5, warm: 6}"),
    "warm-beyond-idle": service("connections: {warm: 6, idle: 5}"),
    "warm-beyond-limit": service("connections: {warm: 6}") + "limits: {upstream_idle_connections: 5}\n",
    "warm-with-proxy": service("connections: {warm: 6, proxy_protocol: v2}"),
    "tunnels-word": service("tunnels: kept"),
    "tunnels-far": service("tunnels: 30s"),
    "tunnels-drain": service("tunnels: drain"),
    "tunnels-drain-bad": service("tunnels: drain soon"),
    "tunnels-drain-mapping": service("tunnels: {drain: soon}"),
    "tunnels-empty": service("tunnels: {}"),
    "tunnels-misspelt": service("tunnels: {drian: 30s}"),
    "tunnels-boolean": service("tunnels: true"),
    # instances
    "instance-no-address": service("instances: [{version: v1}]"),
    "instance-no-version": service("instances: [{address: 127.0.0.1:1}]"),
    "instance-port-zero": service("instances: [{address: 127.0.0.1:0, version: v1}]"),
    "instance-name": service('instances: [{address: "users v1:80", version: v1}]'),
    "instance-no-ip": service("instances: [{address: 10.0.0.256:80, version: v1}]"),
    "instance-unix-relative": service("instances: [{address: 'unix:x', version: v1}]"),
    "instance-unix-long": service(f"instances: [{{address: 'unix:/{'ü' * 54}', version: v1}}]"),
    "instance-unix-twice": service("instances: [{address: 'unix:/x', version: v1}, {address: 'unix:/x', version: v2}]"),
    "instance-twice": service("instances: [{address: 127.0.0.1:1, version: v1}, {address: 127.0.0.1:1, version: v2}]"),
    "instance-twice-ipv6": service(
        "instances: [{address: '[::1]:1', version: v1}, {address: '[0:0::1]:1', version: v1}]"
    ),
    "instance-weight": service("instances: [{address: 127.0.0.1:1, version: v1, weight: 1.5}]"),
    "instance-weight-negative": service("instances: [{address: 127.0.0.1:1, version: v1, weight: -1}]"),
    "instance-metadata": service("instances: [{address: 127.0.0.1:1, version: v1, metadata: {a: [b]}}]"),
    "instance-version-list": service("instances: [{address: 127.0.0.1:1, version: [v1]}]"),
    # lists
    "list-a-text": service("lists: {a: b}"),
    "list-of-lists": service("lists: {a: [[b]]}"),
    "list-file-missing": service("lists: {a: {file: none.txt}}"),
    "list-file-binary": service("lists: {a: {file: binary}}"),
    "list-misspelt": service("lists: {a: {fiel: x}}"),
    "list-empty-id": service("lists: {a: [b, '']}"),
    # rules
    "rule-no-name": rule("match: {}, to: v1"),
    "rule-no-match": rule("name: r, to: v1"),
    "rule-no-target": rule("name: r, match: {}"),
    "rule-two-targets": rule("name: r, match: {}, to: v1, split: {v1: 1}"),
    "rule-bad-name": rule("name: 'a/b', match: {}, to: v1"),
    "rule-twice": service("rules:", "  - {name: r, match: {}, to: v1}", "  - {name: r, match: {}, to: v2}"),
    "rule-bad-priority": rule("name: r, priority: high, match: {}, to: v1"),
    "rule-to-empty": rule("name: r, match: {}, to: {}"),
    "rule-to-semver": rule("name: r, match: {}, to: {semver: '>=1.2.y'}"),
    "rule-to-misspelt": rule("name: r, match: {}, to: {verison: v1}"),
    "rule-split-zero": rule("name: r, match: {}, split: {v1: 0}"),
    "rule-to-a-list": rule("name: r, match: {}, to: [v1]"),
    "rule-metadata-empty": rule("name: r, match: {}, to: {metadata: {}}"),
    # conditions
    "match-unknown": match("header: {a: b}"),
    "match-far": match("weather: rain"),
    "match-a-text": rule("name: r, to: v1, match: all"),
    "operator-unknown": match("headers: {a: {prefx: b}}"),
    "operator-two": match("headers: {a: {prefix: b, suffix: c}}"),
    "operator-none": match("headers: {a: {}}"),
    "operator-null": match("headers: {a: }"),
    "regex-bad": match("headers: {a: {regex: '['}}"),
    "regex-lookahead": match("headers: {a: {regex: '(?=x)'}}"),
    "number-bad": match("query: {n: {number: '>=a'}}"),
    "semver-bad": match("headers: {a: {semver: '>>1'}}"),
    "semver-impossible": match("headers: {a: {semver: '>2 <1'}}"),
    "present-text": match("headers: {a: {present: maybe}}"),
    "in-empty": match("headers: {a: {in: []}}"),
    "in-number": match("headers: {a: {in: 5}}"),
    "list-unknown": match("headers: {a: {in: staff}}"),
    "list-unknown-near": service(
        "lists: {staff-ids: [a]}", "rules:", "  - {name: r, to: v1, match: {not: {headers: {X-User: {in: staf-ids}}}}}"
    ),
    "prefix-empty": match("headers: {a: {prefix: ''}}"),
    "path-condition": match("path: users"),
    "path-in-condition": match("path: {in: [/a, b]}"),
    "path-number-condition": match("path: {number: '>1'}"),
    "path-not-condition": match("path: {not: {exact: a}}"),
    "method-lower": match("method: get"),
    "method-list": match("method: [GET, put]"),
    "cidr-bits": match("client_ip: 10.1.2.3/8"),
    "cidr-bad": match("client_ip: [10.0.0.0/33]"),
    "cidr-text": match("client_ip: office"),
    "cidr-list-name": match("client_ip: {in: office}"),
    "api-version": match("api_version: latest"),
    "device": match("device: [phone, tablet]"),
    "proxy-protocol-h2": service("connections: {protocol: h2, proxy_protocol: v2}"),
    "device-near": match("device: moblie"),
    "header-name": match("headers: {'a b': c}"),
    "header-twice": match("headers: {A: b, a: c}"),
    "headers-empty": match("headers: {}"),
    "headers-a-list": match("headers: [a]"),
    "cookie-name": match("cookies: {'a;b': c}"),
    "query-name": match("query: {'': c}"),
    "grpc-empty": match("grpc: {}"),
    "grpc-unknown": match("grpc: {methods: Get}"),
    "not-empty": match("not: {}"),
    "not-empty-list": match("not: []"),
    "not-unknown": match("not: [{path: /a}, {paht: /a}]"),
    "not-in-not": match("not: {not: {path: /a}}"),
    "value-nested-list": match("headers: {a: [[b]]}"),
    # routes
    "route-no-target": route("hosts: [a.example]"),
    "route-two-targets": route("service: users, redirect: {host: b}"),
    "route-unknown-service": route("service: user"),
    "route-far-service": route("service: billing"),
    "registries-a-mapping": top("registries: {kind: kratos}"),
    "registry-kind": top("registries: [{etcd: {}}]"),
    "registry-kind-misspelt": top("registries: [{kind: go-mirco, etcd: {}}]"),
    "registry-where": top("registries: [{kind: kratos}]"),
    "registry-endpoints": top("registries: [{kind: kratos, etcd: {endpoints: []}}]"),
    "registry-password": top("registries: [{kind: kratos, etcd: {user: ann}}]"),
    "registry-etcd-prefix": top("registries: [{kind: kratos, etcd: {prefix: /x}}]"),
    "registry-twice": top("registries: [{kind: kratos, etcd: {}}, {kind: kratos, prefix: /other, etcd: {}}]"),
    "registry-prefix": top("registries: [{kind: kratos, etcd: {}, prefix: /}]"),
    "registry-at-the-root": top("registries: [{kind: go-zero, etcd: {}}]"),
    "registry-all-of-the-root": top("registries: [{kind: go-zero, etcd: {}, services: {a: b}, take: all}]"),
    "registry-take": top("registries: [{kind: kratos, etcd: {}, take: some}]"),
    "registry-service": top("registries: [{kind: kratos, etcd: {}, services: {a: 'b c'}}]"),
    "registry-service-a-list": top("registries: [{kind: kratos, etcd: {}, services: {a: [b]}}]"),
    "registry-service-unnamed": top("registries: [{kind: kratos, etcd: {}, services: {a: {version: v1}}}]"),
    "registry-service-version": top(
        "registries: [{kind: kratos, etcd: {}, services: {a: {service: b, version: ' '}}}]"
    ),
    "registry-version-from": top("registries: [{kind: kratos, etcd: {}, version_from: tags.version}]"),
    "registry-version-from-nothing": top("registries: [{kind: kratos, etcd: {}, version_from: metadata.}]"),
    "registry-default-version": top("registries: [{kind: kratos, etcd: {}, default_version: 'a b'}]"),
    "registry-schemes": top("registries: [{kind: kratos, etcd: {}, schemes: []}]"),
    "registry-key": top("registries: [{kind: kratos, etcd: {}, service: {}}]"),
    "route-name-twice": route("name: a, service: users, paths: [/a]", "name: a, service: users, paths: [/b]"),
    "route-same": route(
        "service: users, paths: [/a], methods: [GET, PUT]", "service: users, paths: [/b, /a/], methods: [PUT, GET]"
    ),
    "route-same-as-service": route("service: users, paths: [/short]"),
    "route-within-itself": route("service: users, hosts: [A.example, a.example]"),
    "route-listener-unknown": route("service: users, listeners: [edge, egde]"),
    "route-listener-far": route("service: users, listeners: [inbound]"),
    "route-listeners-empty": route("service: users, listeners: []"),
    "route-listeners-a-text": route("service: users, listeners: edge"),
    "service-listener-unknown": service("listeners: [outbound]"),
    "route-same-on-listener": route(
        "service: users, paths: [/a], listeners: [edge]", "service: users, paths: [/a], name: b"
    ),
    "services-same": alone("services: {a: {stable: v1}, b: {stable: v1}}"),
    "route-path": route("service: users, paths: [a]"),
    "route-method": route("service: users, methods: [get]"),
    "route-list": route("service: users, headers: {a: {in: staff}}"),
    "route-list-not": route("service: users, query: {a: {not: {in: staff}}}"),
    "redirect-status": route("redirect: {status: 200, host: a}"),
    "redirect-nowhere": route("redirect: {status: 301}"),
    "redirect-scheme": route("redirect: {scheme: ftp}"),
    "redirect-host": route("redirect: {host: 'a/b'}"),
    "redirect-path": route("redirect: {path: a}"),
    "rewrite-exact": route("service: users, paths: [{exact: /a}], rewrite: {prefix: /b}"),
    "rewrite-redirect": route("redirect: {host: a}, rewrite: {prefix: /b}"),
    "rewrite-empty": route("service: users, rewrite: {}"),
    "rewrite-path": route("service: users, paths: [/a], rewrite: {prefix: b}"),
}


def read_file(file: str) -> str:
    if file == "binary":
        return b"\xff".decode()
    raise FileNotFoundError(2, "No such file or directory", file)


def errors_of(text: str | bytes) -> tuple[str, ...]:
    with pytest.raises(ConfigErrors) as caught:
        load(text, "x.yaml", read_file)
    assert str(caught.value) == "\n".join(map(str, caught.value.errors))
    return tuple(map(str, caught.value.errors))


if goldens.REGENERATE:
    found = "".join(f"{name} | {' ## '.join(errors_of(text))}\n" for name, text in CASES.items())
    (goldens.HERE / "malformed.txt").write_text(found, encoding="utf-8")

LINES = (goldens.HERE / "malformed.txt").read_text(encoding="utf-8").splitlines()
EXPECTED = {name: text for name, _, text in (line.partition(" | ") for line in LINES)}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_error(name: str) -> None:
    assert errors_of(CASES[name]) == (EXPECTED[name],)


def test_every_expectation_has_its_case() -> None:
    assert list(EXPECTED) == list(CASES)
    assert len(CASES) > 200
