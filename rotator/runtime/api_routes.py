"""The table of routes: what each takes, answers and asks for; the router and the OpenAPI document are made from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rotator.runtime import api_models as models
from rotator.runtime.api_guard import Role


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """`name` is the handler's; `answers` gives the model per status, None for text. Errors stand in `errors`."""

    method: str
    path: str
    name: str
    summary: str
    role: Role | None
    answers: Mapping[int, type[BaseModel] | None]
    body: type[models.Body] | None = None
    errors: tuple[int, ...] = ()


_C = "/v1/connections/{name}"
_READ, _OPERATE = (401, 500, 503), (400, 401, 403, 404, 408, 413, 415, 429, 500, 503)

ROUTES: tuple[ApiRoute, ...] = (
    ApiRoute(
        "POST",
        f"{_C}/rotate",
        "rotate",
        "Rotate this connection's key now; answered when the claim is written",
        Role.OPERATE,
        {202: models.Submitted, 200: models.Submitted},
        models.RotateBody,
        (*_OPERATE, 409),
    ),
    ApiRoute(
        "POST",
        f"{_C}/rollback",
        "rollback",
        "Go back to the previous key, while the rotation is open and not past its point of no return",
        Role.OPERATE,
        {202: models.Asked},
        models.NoBody,
        (*_OPERATE, 409),
    ),
    ApiRoute(
        "POST",
        f"{_C}/cancel",
        "cancel",
        "Stop the open rotation while nothing that is in use was changed",
        Role.OPERATE,
        {202: models.Asked},
        models.NoBody,
        (*_OPERATE, 409),
    ),
    ApiRoute(
        "POST",
        f"{_C}/verify",
        "verify",
        "Prove the current key on both sides; change nothing",
        Role.OPERATE,
        {200: models.Verified},
        models.NoBody,
        _OPERATE,
    ),
    ApiRoute(
        "GET",
        "/v1/connections",
        "connections",
        "All connections",
        Role.READ,
        {200: models.ConnectionsAnswer},
        errors=_READ,
    ),
    ApiRoute(
        "GET", _C, "connection", "One connection", Role.READ, {200: models.ConnectionAnswer}, errors=(*_READ, 404)
    ),
    ApiRoute(
        "GET",
        "/v1/rotations/{name}",
        "rotation",
        "An open rotation, or a connection's last one, by its id",
        Role.READ,
        {200: models.RotationAnswer},
        errors=(*_READ, 404),
    ),
    ApiRoute("GET", "/healthz", "healthz", "The threads run", None, {200: models.Health, 503: models.Health}),
    ApiRoute(
        "GET",
        "/readyz",
        "readyz",
        "Vault is writable and the last tick is recent",
        None,
        {200: models.Health, 503: models.Health},
    ),
    ApiRoute("GET", "/metrics", "metrics", "Prometheus metrics", Role.READ, {200: None}, errors=(401, 500)),
    ApiRoute("GET", "/openapi.json", "document", "This document", Role.READ, {200: None}, errors=(401,)),
)


def openapi(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of `ROUTES`."""
    schemas = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        operation: dict[str, Any] = {
            "operationId": route.name,
            "summary": route.summary,
            "security": [{"bearer": []}] if route.role else [],
            "responses": {
                **{str(status): _response(status, model) for status, model in route.answers.items()},
                **{str(status): _response(status, models.Error) for status in route.errors},
            },
        }
        if route.role:
            operation["description"] = f"Needs a token with the role `{route.role.value}`."
        names = re.findall(r"{(\w+)}", route.path)
        if names:
            schema = {"type": "string"}
            operation["parameters"] = [{"name": n, "in": "path", "required": True, "schema": schema} for n in names]
        if route.body:
            operation["requestBody"] = {
                "required": False,
                "content": {"application/json": {"schema": _ref(route.body)}},
            }
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Provisioning key rotator", "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas() -> dict[str, Any]:
    taken = {route.body for route in ROUTES if route.body}
    given = {model for route in ROUTES for model in route.answers.values() if model} | {models.Error}
    modes: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        *((model, "validation") for model in sorted(taken, key=lambda model: model.__name__)),
        *((model, "serialization") for model in sorted(given, key=lambda model: model.__name__)),
    ]
    _, document = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = document["$defs"]
    return schemas


def _response(status: int, model: type[BaseModel] | None) -> dict[str, Any]:
    description = HTTPStatus(status).phrase
    if model is None:
        return {"description": description}
    return {"description": description, "content": {"application/json": {"schema": _ref(model)}}}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
