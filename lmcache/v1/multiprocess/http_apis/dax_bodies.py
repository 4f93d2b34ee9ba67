"""Bodies of Device-DAX reconfiguration, whose fields the documents fix; those of other backends are their own."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr

from lmcache.core.sizes import parse_size


class DAXBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    adapter_index: StrictInt = 0
    device_path: StrictStr


class AddBody(DAXBody):
    size: StrictInt | StrictStr


class RemoveBody(DAXBody):
    mode: Literal["migrate", "evict", "drain"] = "migrate"
    force: StrictBool = False


class ResizeBody(DAXBody):
    size: StrictInt | StrictStr
    mode: Literal["migrate", "evict"] = "migrate"
    force: StrictBool = False


BODY_OF_OPERATION: dict[str, type[DAXBody]] = {"add": AddBody, "remove": RemoveBody, "resize": ResizeBody}


def payload_of(body: DAXBody) -> dict[str, object]:
    """What the adapter gets: sizes in bytes. Raises ValueError."""
    payload = body.model_dump(exclude={"adapter_index"})
    if "size" in payload:
        payload["size"] = parse_size(payload["size"])
    return payload
