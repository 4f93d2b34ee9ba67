"""Settings of the S3 adapter: which bucket a text means, what is refused, what is never shown."""

from __future__ import annotations

import builtins
import json

import pytest

from lmcache.config.json_safe import safe_asdict
from lmcache.errors import ConfigError
from lmcache.l2.base import AdapterContext
from lmcache.l2.registry import make_adapter, parse_adapter
from lmcache.l2.s3.client import make_store
from lmcache.l2.s3.config import S3Config
from lmcache.l2.s3.location import Location, Service, parse_location

EXPRESS = "kv--usw2-az1--x-s3"


@pytest.mark.parametrize(
    ("endpoint", "location"),
    [
        ("bucket", Location(Service.S3, "bucket")),
        ("my.bucket/a/b/", Location(Service.S3, "my.bucket", "a/b")),
        ("s3://bucket/a/b", Location(Service.S3, "bucket", "a/b")),
        ("bucket.s3.us-west-2.amazonaws.com", Location(Service.S3, "bucket", region="us-west-2")),
        ("https://bucket.s3.us-west-2.amazonaws.com/p", Location(Service.S3, "bucket", "p", region="us-west-2")),
        ("a.b.s3.amazonaws.com", Location(Service.S3, "a.b")),
        ("https://s3.eu-west-1.amazonaws.com/bucket/p", Location(Service.S3, "bucket", "p", region="eu-west-1")),
        (f"{EXPRESS}.s3express-usw2-az1.us-west-2.amazonaws.com", Location(Service.S3, EXPRESS, region="us-west-2")),
        ("http://minio:9000/bucket/p", Location(Service.S3, "bucket", "p", "http://minio:9000")),
        ("gs://bucket/p", Location(Service.GOOGLE, "bucket", "p")),
        ("az://container/p", Location(Service.AZURE, "container", "p")),
        ("https://me.blob.core.windows.net/container/p", Location(Service.AZURE, "container", "p", account="me")),
    ],
)
def test_locations(endpoint, location):
    assert parse_location(endpoint) == location


def test_prefixes_add_up_and_a_server_can_be_named():
    location = parse_location("s3://bucket/a", "/b/c/", "minio:9000", disable_tls=True)
    assert location == Location(Service.S3, "bucket", "a/b/c", "http://minio:9000")
    assert parse_location("bucket", "", "minio:9000").endpoint_url == "https://minio:9000"
    assert str(location) == "s3://bucket/a/b/c"


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"s3_endpoint": ""}, "s3_endpoint must be a text"),
        ({"s3_endpoint": "ftp://bucket"}, "the scheme 'ftp'"),
        ({"s3_endpoint": "s3://"}, "for a bucket"),
        ({"s3_endpoint": "host:9000"}, "for a bucket"),
        ({"s3_endpoint": "http://user:secret@host/bucket"}, "no user"),
        ({"s3_endpoint": "bucket.s3.dualstack.us-west-2.amazonaws.com"}, "s3_endpoint_url"),
        ({"s3_endpoint": "s3://bucket/a//b"}, "a part that is empty"),
        ({"s3_prefix": "../b"}, "a part that is empty, '.'"),
        ({"s3_prefix": "x" * 513}, "512 bytes"),
        ({"s3_endpoint_url": "http://host/path"}, "must be http"),
        ({"s3_endpoint_url": "http://a:b@host"}, "credentials"),
        ({"s3_endpoint_url": "https://host", "disable_tls": True}, "contradicts"),
        ({"s3_endpoint": "http://host/bucket", "s3_endpoint_url": "http://other"}, "keep one"),
        ({"s3_region": ""}, "missing field 's3_region'"),
        ({"s3_endpoint": "bucket.s3.us-west-2.amazonaws.com"}, "says 'us-west-2'"),
        ({"s3_region": 1}, "s3_region must be a text"),
        ({"s3_num_io_threads": 0}, "s3_num_io_threads"),
        ({"s3_num_io_threads": 1000}, "at most 512"),
        ({"s3_part_size_mb": 1}, "5 to 1024"),
        ({"s3_request_timeout_s": 0}, "s3_request_timeout_s"),
        ({"max_capacity_gb": -1}, "max_capacity_gb"),
        ({"s3_prefer_http2": "yes"}, "true or false"),
        ({"s3_enable_s3express": True}, "directory bucket"),
        ({"aws_access_key_id": "a"}, "go together"),
        ({"aws_access_key_id": "a", "aws_secret_access_key": ""}, "aws_secret_access_key must be"),
        ({"aws_session_token": "t"}, "needs aws_access_key_id"),
        ({"store_options": {"a": 1}}, "store_options"),
        ({"s3_endpoint": "gs://bucket", "disable_tls": True}, "store_options"),
    ],
)
def test_refused(fields, error):
    with pytest.raises(ConfigError, match=error):
        S3Config(**{"s3_endpoint": "bucket", "s3_region": "us-east-1", **fields})


def _spec(**fields: object) -> str:
    return json.dumps({"type": "s3", "s3_endpoint": "bucket", "s3_region": "us-east-1", **fields})


def test_secrets_are_not_shown():
    fields = {"aws_access_key_id": "AKIA1", "aws_secret_access_key": "hush", "aws_session_token": "hush2"}
    spec = parse_adapter(_spec(**fields, store_options={"sse_customer_key_base64": "hush3"}), "--l2-adapter #1")
    shown = json.dumps(safe_asdict(spec))
    for secret in ("AKIA1", "hush"):
        assert secret not in shown
        assert secret not in repr(spec)
    assert shown.count('"***"') == 4


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigError, match="colour"):
        make_store(S3Config("bucket", "us-east-1", store_options={"colour": "blue"}))


@pytest.mark.parametrize(
    ("endpoint", "options"),
    [
        ("gs://bucket/p", {"skip_signature": True}),
        ("az://container/p", {"account_name": "me", "account_key": "a2V5"}),
        ("https://me.blob.core.windows.net/container/p", {"account_key": "a2V5"}),
        ("s3://bucket", {"virtual_hosted_style_request": True, "disable_bulk_delete": True}),
        (f"s3://{EXPRESS}", {}),
    ],
)
def test_stores_of_all_services_can_be_made(endpoint, options):
    express = endpoint.endswith("x-s3")
    make_store(S3Config(endpoint, "us-west-2", s3_enable_s3express=express, store_options=options))


def test_without_obstore_the_extra_is_named(monkeypatch):
    real_import = builtins.__import__

    def without_obstore(name: str, *arguments: object, **keywords: object) -> object:
        if name == "obstore":
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without_obstore)
    with pytest.raises(ConfigError, match=r"pip install lmcache\[s3\]"):
        make_adapter(parse_adapter(_spec(), "--l2-adapter #1"), AdapterContext("s3"))
