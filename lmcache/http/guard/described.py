"""What the guard may answer, added to an application's own OpenAPI description."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from lmcache.http.guard.demands import demand_of
from lmcache.http.guard.policy import GuardConfig

_SCHEME = "bearer"
_ERROR_SCHEMA = {
    "type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"],
}  # fmt: skip
_NO_TEXT = "The path or the query is not UTF-8."
_BODY_ANSWERS = {
    "400": f"The body cannot be read: not UTF-8, too deeply nested, a number of thousands of digits. {_NO_TEXT}",
    "413": "The body is too large.",
}


def describe_guard(app: FastAPI, config: GuardConfig) -> None:
    """From now on `app.openapi()` knows them."""
    described_by_routes = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = described_by_routes()
            for path, operations in schema["paths"].items():
                for method, operation in operations.items():
                    _describe(operation, method.upper(), path, bool(config.tokens))
            if config.tokens:
                schemes = schema.setdefault("components", {}).setdefault("securitySchemes", {})
                schemes[_SCHEME] = {"type": "http", "scheme": "bearer"}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to extend the description


def _describe(operation: dict[str, Any], method: str, path: str, has_tokens: bool) -> None:
    answers = operation["responses"]
    if "requestBody" not in operation:
        answers.setdefault("400", _answer(_NO_TEXT))
    role = demand_of(method, path, "").role
    if role is None:
        return
    answers.setdefault("403", _answer(f"Not answered to this client, or to a token below the role {role.word}."))
    if has_tokens:
        answers.setdefault("401", _answer(f"A token of role {role.word} or above is missing."))
        operation["security"] = [{_SCHEME: []}]
    if "requestBody" in operation:
        for code, text in _BODY_ANSWERS.items():
            answers.setdefault(code, {"description": text})


def _answer(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
