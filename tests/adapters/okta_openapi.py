"""Checks an answer of the sandbox Okta against Okta's own OpenAPI document (`okta-openapi-sandbox.json`).

Where recorded traffic differs from that document (its `info.x-observed-differences`) the recorded shape is taken:
each such place is one line of `_observed`. A property that the document does not know at the top of an answer is a
problem too, or a misspelt one would pass.
"""

from __future__ import annotations

import copy
import json
import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker

SPEC: dict[str, Any] = json.loads((Path(__file__).parent / "okta-openapi-sandbox.json").read_text("utf-8"))
_ERROR_FIELDS = ["errorCode", "errorSummary", "errorLink", "errorId", "errorCauses"]
# Any endpoint can give these although the document lists them at few: 400 upon activation (okta-sdk-nodejs's
# integration test), the caller's own 401 and 403, and Okta's own trouble.
_ANYWHERE = {400, 401, 403, 404, 405, 429, 500, 503}


def operations() -> list[tuple[str, str]]:
    """Every (METHOD, path template) of the document."""
    return [(method.upper(), path) for path, methods in SPEC["paths"].items() for method in methods]


def operation_of(method: str, path: str) -> tuple[str, str] | None:
    """The operation that a call was for; a path without parameters wins."""
    fitting = [name for name in SPEC["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", name), path)]
    fitting.sort(key=lambda name: name.count("{"))
    return next(((method, name) for name in fitting if method.lower() in SPEC["paths"][name]), None)


def check(response: httpx.Response) -> None:
    """AssertionError naming every way in which the answer differs from the document. An httpx event hook."""
    response.read()
    request = response.request
    found = problems(request.method, request.url.path, response)
    assert not found, f"{request.method} {request.url.path} -> {response.status_code}: {found}"


def problems(method: str, path: str, response: httpx.Response) -> list[str]:
    operation = operation_of(method, path)
    status, body = response.status_code, response.content
    if status == 502 and b"<html>" in body:
        return []  # a proxy before Okta
    if status == 403 and not body:  # okta-sdk-golang issue 145: too few scopes
        return [] if "insufficient_scope" in response.headers.get("www-authenticate", "") else ["an unexplained 403"]
    if operation is None:
        schema: Any = {"$ref": "#/components/schemas/Error"} if status in (404, 405) else None
    else:
        schema = _schema(operation[1], operation[0].lower(), status)
    if schema is None:
        return [f"status {status} is not in the document"]
    if schema == "empty":
        return ["a body where there is none in the document"] if body else []
    if response.headers["content-type"] != "application/json":
        return [f"content type {response.headers['content-type']}"]
    parsed = response.json()
    if isinstance(parsed, dict) and "error" in parsed:  # RFC 6749 and RFC 9449 errors, also at API paths
        schema = {"$ref": "#/components/schemas/OAuthError"}
    found = [f"{error.json_path}: {error.message}" for error in _validator(json.dumps(schema)).iter_errors(parsed)]
    if isinstance(parsed, dict) and "errorCode" in parsed:
        found += [f"{name} is missing" for name in _ERROR_FIELDS if name not in parsed]
    for feature in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(feature, dict) and "capabilities" in feature:
            found += _feature_problems(feature)
    return found


def _schema(path: str, method: str, status: int) -> Any:
    responses = SPEC["paths"][path][method]["responses"]
    declared = responses.get(str(status))
    if declared is None:
        return {"$ref": "#/components/schemas/Error"} if status in _ANYWHERE else None
    while "$ref" in declared:
        declared = SPEC["components"]["responses"][declared["$ref"].rpartition("/")[2]]
    content = declared.get("content")
    return content["application/json"]["schema"] if content else "empty"


def _feature_problems(feature: dict[str, Any]) -> list[str]:
    """The document tells the two features apart by a discriminator, which JSON Schema does not know."""
    mapping = SPEC["components"]["schemas"]["ApplicationFeature"]["discriminator"]["mapping"]
    schema = {"$ref": mapping[feature["name"]]}
    return [f"{error.json_path}: {error.message}" for error in _validator(json.dumps(schema)).iter_errors(feature)]


@cache
def _validator(schema: str) -> Draft202012Validator:
    parsed = json.loads(schema)
    if parsed.get("type") == "array":
        items = {"allOf": [parsed["items"]], "unevaluatedProperties": False}
        parsed = {"type": "array", "items": items}
    else:
        parsed = {"allOf": [parsed], "unevaluatedProperties": False}
    return Draft202012Validator(parsed | {"components": _observed()}, format_checker=_formats())


@cache
def _observed() -> dict[str, Any]:
    """The document's components with what was recorded instead."""
    components: dict[str, Any] = copy.deepcopy(SPEC["components"])
    schemas = components["schemas"]
    _tolerate_null(components)
    schemas["ProvisioningConnectionTokenAuthScheme"]["enum"].append("OAUTH2")
    schemas["TokenResponseTokenType"]["enum"].append("DPoP")  # Okta docs: guides/dpop
    schemas["ProvisioningConnectionResponse"]["required"].remove("profile")  # an app that was never set up
    schemas["ProvisioningConnectionResponse"]["properties"]["clientId"] = {"type": "string"}
    schemas["ApiToken"]["properties"]["_links"] = {"type": "object"}
    del schemas["TimeDuration"]["pattern"]  # it refuses every duration
    schemas["AppConnectionUserProvisionJWKResponse"]["properties"]["keys"] = {
        "type": "array"
    }  # the guide: a bare key set
    schemas["AppConnectionUserProvisionJWKResponse"].pop("required", None)
    schemas["ApplicationFeature"]["properties"]["capabilities"] = {"type": "object"}  # checked by name, above
    schemas["ImportUsernameObject"].pop("required", None)  # the wire: userNameFormat
    schemas["Application"]["properties"].update(name={"type": "string"}, settings={"type": "object"})  # per app kind
    return components


def _tolerate_null(node: Any) -> None:
    """Okta writes null where its schemas are not nullable."""
    if isinstance(node, list):
        for member in node:
            _tolerate_null(member)
    elif isinstance(node, dict):
        for member in node.values():
            _tolerate_null(member)
        properties = node.get("properties")
        if isinstance(properties, dict):
            for name, schema in properties.items():
                if name not in node.get("required", []):
                    properties[name] = {"anyOf": [{"type": "null"}, schema]}


def _formats() -> FormatChecker:
    formats = FormatChecker()

    def is_moment(value: object) -> bool:
        return not isinstance(value, str) or (value.endswith("Z") and datetime.fromisoformat(value) is not None)

    formats.checks("date-time", raises=ValueError)(is_moment)
    return formats
