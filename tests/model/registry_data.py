"""Keys and values as the frameworks write them, and what they mean."""

from __future__ import annotations

from graylb.model.registries import Found, Layout

_GRAY = (("env", "gray"),)

GOLDEN: list[tuple[Layout, str, bytes, tuple[Found, ...]]] = [
    (
        "go-micro",
        "/micro/registry/greeter/greeter-5f1c",
        b'{"name":"greeter","version":"v1.2.0","metadata":null,"endpoints":[],"nodes":[{"metadata":{"env":"gray"},'
        b'"id":"greeter-5f1c","address":"10.0.0.5:8080"}]}',
        (Found("greeter", "greeter-5f1c", "10.0.0.5:8080", "v1.2.0", metadata=_GRAY),),
    ),
    (
        "go-micro",
        "/micro/registry/billing/greeter/greeter-77aa",
        b'{"name":"greeter","version":"v2","metadata":null,"endpoints":null,"nodes":[{"metadata":{"protocol":"grpc",'
        b'"secure":"true"},"id":"greeter-77aa","address":"10.0.0.5:8081"}]}',
        (
            Found(
                "greeter",
                "greeter-77aa",
                "10.0.0.5:8081",
                "v2",
                metadata=(("protocol", "grpc"), ("secure", "true")),
                scheme="grpcs",
                domain="billing",
            ),
        ),
    ),
    (
        "kratos",
        "/microservices/user/7c9e",
        b'{"id":"7c9e","name":"user","version":"v1.2.0","metadata":{"env":"gray"},"endpoints":['
        b'"http://10.0.0.6:8000?isSecure=false","grpc://10.0.0.6:9000?isSecure=false"]}',
        (
            Found("user", "7c9e", "10.0.0.6:8000", "v1.2.0", metadata=_GRAY, scheme="http"),
            Found("user", "7c9e", "10.0.0.6:9000", "v1.2.0", metadata=_GRAY, scheme="grpc"),
        ),
    ),
    (
        "go-zero",
        "user.rpc/7587870458981677831",
        b"10.0.0.7:8080",
        (Found("user.rpc", "7587870458981677831", "10.0.0.7:8080"),),
    ),
    (
        "grpc-go",
        "svc/orders/10.0.0.8:9000",
        b'{"Op":0,"Addr":"10.0.0.8:9000","Metadata":{"version":"v2"}}',
        (Found("orders", "10.0.0.8:9000", "10.0.0.8:9000", "v2", metadata=(("version", "v2"),)),),
    ),
    (
        "kitex",
        "kitex/registry-etcd/echo/10.0.0.9:8888",
        b'{"network":"tcp","address":"10.0.0.9:8888","weight":10,"tags":{"version":"v2"}}',
        (Found("echo", "10.0.0.9:8888", "10.0.0.9:8888", "v2", 10, metadata=(("version", "v2"),)),),
    ),
    (
        "dubbo-go",
        "/services/shop/10.0.0.10:20000",
        b'{"ID":"10.0.0.10:20000","ServiceName":"shop","Host":"10.0.0.10","Port":20000,"Weight":0,"Enable":true,'
        b'"Healthy":true,"Metadata":{},"Tag":""}',
        (Found("shop", "10.0.0.10:20000", "10.0.0.10:20000"),),
    ),
]
