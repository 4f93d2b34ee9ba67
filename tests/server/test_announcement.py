"""The connector argument: nothing that the connector would assume anyway."""

from __future__ import annotations

import json

import pytest

from lmcache.config.mp_server import MPConfig
from lmcache.server.announcement import connector_argument


def extra_config(mp: MPConfig, zmq_address: str) -> object:
    flag, _, quoted = connector_argument(mp, zmq_address).partition(" ")
    assert flag == "--kv-transfer-config"
    assert quoted[0] == quoted[-1] == "'"
    config = json.loads(quoted[1:-1])
    assert (config["kv_connector"], config["kv_role"]) == ("LMCacheMPConnector", "kv_both")
    return config.get("kv_connector_extra_config")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_default_address_needs_no_settings(host: str) -> None:
    assert extra_config(MPConfig("id", host=host), "tcp://127.0.0.1:5555") is None


def test_port_host_and_token_are_named_where_they_differ() -> None:
    assert extra_config(MPConfig("id", port=6000), "tcp://127.0.0.1:6000") == {"lmcache.mp.port": 6000}
    assert extra_config(MPConfig("id", host="127.0.0.2"), "tcp://127.0.0.2:5555") == {
        "lmcache.mp.host": "tcp://127.0.0.2"
    }
    everywhere = MPConfig("id", host="0.0.0.0", zmq_token_file="/etc/token")
    assert extra_config(everywhere, "tcp://0.0.0.0:5555") == {"lmcache.mp.token_file": "/etc/token"}
