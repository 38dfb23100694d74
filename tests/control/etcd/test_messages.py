"""etcd3's messages load under today's protobuf, each time in a fresh interpreter, whoever else uses protobuf."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHECK = """
request = rpc.WatchRequest(create_request=rpc.WatchCreateRequest(key=b"a", start_revision=7, fragment=True))
assert rpc.WatchRequest.FromString(request.SerializeToString()) == request
# the wire form, by hand: field 1 of length 7; key is field 1, start_revision 3, fragment 8
assert request.SerializeToString() == bytes.fromhex("0a070a0161180740" + "01")
assert rpc.Compare.CREATE == 1 and kv.Event.DELETE == 1 and rpc.NOSPACE == 1
"""
OURS = "from graylb.control.etcd.messages import kv, rpc, stubs"
OTHER = "from opentelemetry.proto.trace.v1 import trace_pb2; assert trace_pb2.Span(name='x').SerializeToString()"
CLASH = """
from google.protobuf import descriptor_pb2, descriptor_pool
other = descriptor_pb2.FileDescriptorProto(name="kv.proto", package="somebody.elses")
descriptor_pool.Default().Add(other)
"""


def python(*lines: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", "\n".join(lines)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "lines",
    [
        (OURS, CHECK),
        (OURS, "import etcd3; assert etcd3.client", CHECK),
        (OTHER, OURS, "import etcd3", CHECK, OTHER),
        (OURS, CHECK, "import etcd3", OTHER),
        (CLASH, OURS, CHECK, "import etcd3"),
        (OURS, CLASH, CHECK),
    ],
    ids=["alone", "etcd3", "telemetry first", "telemetry last", "clash first", "clash last"],
)
def test_they_load_and_mean_the_same(lines: tuple[str, ...]) -> None:
    done = python(*lines)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_etcd3_without_us_is_why() -> None:
    """When this fails, etcd3 has learnt to load by itself, and `messages` can go."""
    assert "Descriptors cannot be created directly" in python("import etcd3").stderr


def test_coming_late_is_an_error_that_says_so() -> None:
    late = "import sys, types; sys.modules['etcd3.etcdrpc'] = types.ModuleType('etcd3.etcdrpc')"
    assert "ImportError: etcd3.etcdrpc was imported before graylb.control.etcd.messages" in python(late, OURS).stderr
