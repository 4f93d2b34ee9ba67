"""Changing L2 adapters while they work. What an operation means is the adapter's business."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from lmcache.errors import AdapterNotFoundError, L2Error, ReconfigureError
from lmcache.http.errors import sendable
from lmcache.v1.multiprocess.http_apis.dax_bodies import BODY_OF_OPERATION, payload_of
from lmcache.v1.multiprocess.http_apis.operator_calls import (
    NO_ENGINE,
    answer_json,
    described,
    find_engine,
    run_blocking,
    run_in_thread,
)

router = APIRouter(tags=["runtime reconfiguration"])

_DAX = "dax"
# No operation has that many; each one that is wrong is told.
_FIELDS_MAX = 100
_NO_ENGINE = described(_503="The engine is not there yet")
_STATUS_ANSWERS = {**_NO_ENGINE, **described(_400="A blank backend")}
_CHANGE_ANSWERS = described(
    _400="A blank backend or operation, an operation the backend does not know, or a bad size",
    _403="The adapter was configured without it",
    _404="No such adapter, or no such device",
    _409="It cannot be done now, or contradicts what is there",
    _422="The body is no object, lacks a field or, for dax, has one too many",
    _503="The engine is not there yet, or the backend cannot be reached",
    _507="Too little room to move objects to",
)


OperationBody = Annotated[dict[str, Any], Field(max_length=_FIELDS_MAX)]


class _GenericBody(BaseModel):
    """The rest of the fields is the adapter's."""

    model_config = ConfigDict(extra="allow")

    adapter_index: StrictInt = 0


@router.get("/reconfigure/backends", summary="Backends that can be reconfigured", responses=_NO_ENGINE)
async def list_backends(request: Request) -> Response:
    """The configured types, each once."""
    engine = find_engine(request)
    if engine is None:
        return _error(503, NO_ENGINE)
    names = engine.storage.reconfigurable_backends()
    return answer_json({"enabled": bool(names), "num_backends": len(names), "backends": names})


@router.get("/reconfigure/{backend}/status", summary="The adapters of a backend", responses=_STATUS_ANSWERS)
@router.get("/reconfigure/{backend}/l2/status", summary="The same, under the later name", responses=_STATUS_ANSWERS)
async def report_backend(request: Request, backend: str) -> Response:
    """`adapter_index` counts the adapters of this backend and is what a change takes. An unknown backend has none."""
    name = _normalized(backend)
    if not name:
        return _error(400, "backend must be non-empty")
    engine = find_engine(request)
    if engine is None:
        return _error(503, NO_ENGINE)
    entries = await run_in_thread(lambda: engine.storage.reconfigure_status(name))
    return answer_json({"enabled": bool(entries), "backend": name, "num_adapters": len(entries), "adapters": entries})


@router.post("/reconfigure/{backend}/{operation}", summary="Change an adapter", responses=_CHANGE_ANSWERS)
@router.post(
    "/reconfigure/{backend}/l2/{operation}", summary="The same, under the later name", responses=_CHANGE_ANSWERS
)
async def reconfigure(request: Request, backend: str, operation: str, body: OperationBody) -> Response:
    """Changes of one adapter follow each other. `adapter_index` (0) is among the fields; the others are the
    operation's."""
    name, verb = _normalized(backend), _normalized(operation)
    if not name or not verb:
        return _error(400, f"{'operation' if name else 'backend'} must be non-empty")
    if name == _DAX and verb not in BODY_OF_OPERATION:
        return _error(400, f"unsupported dax reconfigure operation: {verb[:100]}")
    try:
        adapter_index, payload = _read(name, verb, body)
    except ValidationError as error:
        return answer_json({"detail": sendable(error.errors())}, 422)
    except ValueError as error:
        return _error(400, str(error))
    engine = find_engine(request)
    if engine is None:
        return _error(503, NO_ENGINE)
    try:
        done = await run_blocking(lambda: engine.storage.reconfigure_l2_adapter(name, verb, adapter_index, payload))
    except AdapterNotFoundError as error:
        return _error(404, str(error))
    except ReconfigureError as error:
        return answer_json({**({"error": str(error)} if str(error) else {}), **error.details}, error.status)
    except L2Error as error:
        return _error(503, str(error))
    return answer_json(done)


def _read(backend: str, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, object]]:
    """The adapter's number and its fields. Raises ValidationError, and ValueError for a size."""
    if backend == _DAX:
        fields = BODY_OF_OPERATION[operation].model_validate(body)
        return fields.adapter_index, payload_of(fields)
    adapter_index = _GenericBody.model_validate(body).adapter_index
    return adapter_index, {name: value for name, value in body.items() if name != "adapter_index"}


def _normalized(part: str) -> str:
    return part.strip().lower()


def _error(status: int, text: str) -> Response:
    return answer_json({"error": sendable(text)}, status)
