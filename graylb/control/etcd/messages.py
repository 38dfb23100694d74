"""The messages and stubs of the package etcd3, made to work with the protobuf of today.

etcd3's message modules were generated in 2019 and refuse to load with protobuf 4 or newer. What they describe is still
right, so their serialized descriptors are taken from the modules' text and loaded into a descriptor pool of our own:
the default pool belongs to the whole process, and other packages have files of the same names (`kv.proto`) in it. The
modules made so are registered under etcd3's names, so that etcd3 itself imports, whichever package came first.

A few fields are younger than etcd3 and are added here; their numbers are those of etcd's `rpc.proto` of version 3.4.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "etcd3.etcdrpc"
_FILES: Final = ("kv", "auth", "rpc")
"""In the order in which they import one another."""

_SERIALIZED: Final = re.compile(r"serialized_pb=_b\(('(?:[^'\\]|\\.)*')\)")

_Field = descriptor_pb2.FieldDescriptorProto
_YOUNGER: Final = {
    "WatchCreateRequest": (("fragment", 8, _Field.TYPE_BOOL, False),),
    "WatchResponse": (("fragment", 7, _Field.TYPE_BOOL, False),),
    "StatusResponse": (("errors", 8, _Field.TYPE_STRING, True),),
}
"""message -> (name, number, type, repeated)."""


def _described(folder: Path, name: str) -> descriptor_pb2.FileDescriptorProto:
    path = folder / f"{name}_pb2.py"
    found = _SERIALIZED.search(path.read_text())
    if found is None:
        raise ImportError(f"{path}: no serialized descriptor; graylb knows the layout of etcd3 0.12.0")
    file = descriptor_pb2.FileDescriptorProto.FromString(ast.literal_eval(found[1]).encode("latin1"))
    for message in file.message_type:
        present = {field.name for field in message.field}
        for field, number, kind, repeated in _YOUNGER.get(message.name, ()):
            if field not in present:
                label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
                message.field.add(name=field, number=number, type=kind, label=label)
    return file


def _module(pool: Any, file: descriptor_pb2.FileDescriptorProto, name: str) -> ModuleType:
    """A module with the file's messages, enums and enum values, as protoc would have generated it."""
    pool.Add(file)
    descriptor = pool.FindFileByName(file.name)
    module = ModuleType(f"{_PACKAGE}.{name}_pb2", f"{file.name}, from the descriptors of etcd3")
    module.DESCRIPTOR = descriptor  # type: ignore[attr-defined]
    for message in descriptor.message_types_by_name.values():
        setattr(module, message.name, message_factory.GetMessageClass(message))
    for enum in descriptor.enum_types_by_name.values():
        for value in enum.values:
            setattr(module, value.name, value.number)
    return module


def _install() -> None:
    """Registers the message modules as etcd3's. Raises ImportError where etcd3 is missing or came before us."""
    taken = sorted(name for name in sys.modules if name.startswith(_PACKAGE))
    if taken:
        raise ImportError(f"{taken[0]} was imported before {__name__}, which has to come first")
    spec = importlib.util.find_spec("etcd3")
    if spec is None or spec.origin is None:
        raise ImportError("the package etcd3 is not installed; graylb reads etcd through its messages")
    folder = Path(spec.origin).parent / "etcdrpc"
    pool = descriptor_pool.DescriptorPool()
    made = [_module(pool, _described(folder, name), name) for name in _FILES]
    sys.modules.update({module.__name__: module for module in made})


_install()

from etcd3.etcdrpc import kv_pb2, rpc_pb2, rpc_pb2_grpc  # noqa: E402

kv: Final[Any] = kv_pb2
rpc: Final[Any] = rpc_pb2
stubs: Final[Any] = rpc_pb2_grpc
