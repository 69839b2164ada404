"""Apps themselves, their provisioning features and their group push mappings in the sandbox Okta."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rotator.sandbox.okta_state import App, Kind, State, stamp
from rotator.sandbox.okta_wire import Answer, Call, Endpoint, invalid, malformed, not_found

_READ, _MANAGE = ("okta.apps.read",), ("okta.apps.manage",)
_DESCRIPTIONS = {
    "USER_PROVISIONING": "User provisioning settings from Okta to a downstream application",
    "INBOUND_PROVISIONING": "In-bound provisioning settings from a downstream application to Okta",
}


def new_features(kind: Kind, name: str) -> dict[str, dict[str, Any]]:
    """The capabilities an app starts with: Zscaler has no inbound side, an app without provisioning has none."""
    outbound = {
        "create": {"lifecycleCreate": {"status": "ENABLED"}},
        "update": {
            "profile": {"status": "ENABLED"},
            "lifecycleDeactivate": {"status": "ENABLED"},
            "password": {"status": "ENABLED", "seed": "RANDOM", "change": "KEEP_EXISTING"},
        },
    }
    inbound = {
        "importSettings": {
            # The wire says userNameFormat where the schema says usernameFormat (recorded: terraform-provider-okta).
            "username": {"userNameFormat": "EMAIL", "userNameExpression": ""},
            "schedule": {"status": "DISABLED"},
        },
        "importRules": {
            "userCreateAndMatch": {
                "exactMatchCriteria": "USERNAME",
                "allowPartialMatch": False,
                "autoConfirmPartialMatch": False,
                "autoConfirmExactMatch": False,
                "autoConfirmNewUsers": False,
                "autoActivateNewUsers": False,
            }
        },
    }
    if kind is Kind.UNSUPPORTED:
        return {}
    return {"USER_PROVISIONING": outbound} | ({} if name == "zscalerbyz" else {"INBOUND_PROVISIONING": inbound})


@dataclass(slots=True)
class GroupPush:
    """One group push mapping. `error` is set while its status is ERROR."""

    id: str
    app_id: str
    group_id: str
    name: str
    created: datetime
    updated: datetime
    target_id: str | None = None
    last_push: datetime | None = None
    error: str | None = None


class Apps:
    def __init__(self, state: State) -> None:
        self._state = state
        self.group_pushes: dict[str, GroupPush] = {}

    def endpoints(self) -> list[Endpoint]:
        one = "/api/v1/apps/{app_id}"
        mappings, read_groups = f"{one}/group-push/mappings", ("okta.apps.read", "okta.groups.read")
        return [
            Endpoint("GET", "/api/v1/apps", self._list, _READ),
            Endpoint("GET", one, self._get, _READ),
            Endpoint("GET", f"{one}/features", self._features, _READ),
            Endpoint("GET", f"{one}/features/{{name}}", self._feature, _READ),
            Endpoint("PUT", f"{one}/features/{{name}}", self._put_feature, _MANAGE, media_type="application/json"),
            Endpoint("GET", mappings, self._mappings, read_groups),
            Endpoint("GET", f"{mappings}/{{mapping_id}}", self._mapping, read_groups),
        ]

    def _list(self, call: Call) -> Answer:
        return Answer(200, [self._view(app, call) for app in list(self._state.apps.values())])

    def _get(self, call: Call) -> Answer:
        app = self._state.apps.get(call.params["app_id"])
        return Answer(200, self._view(app, call)) if app else _no_app(call)

    def _view(self, app: App, call: Call) -> dict[str, Any]:
        settings: dict[str, Any] = {"baseUrl": app.base_url}
        if self._state.switches.app_shows_token and app.key is not None:
            settings["token"] = app.key  # Okta's schema has such a field; whether a GET fills it is not known
        return {
            "id": app.id,
            "name": app.name,
            "label": app.label,
            "status": "ACTIVE",
            "created": stamp(app.created),
            "lastUpdated": stamp(app.created),
            "signOnMode": "AUTO_LOGIN",
            "features": [],
            "settings": {"app": settings},
            "_links": {"self": {"href": f"{_origin(call)}/api/v1/apps/{app.id}"}},
        }

    def _features(self, call: Call) -> Answer:
        app = self._provisioned(call)
        if isinstance(app, Answer):
            return app
        return Answer(200, [_feature_view(app, name, call) for name in app.features])

    def _feature(self, call: Call) -> Answer:
        app = self._provisioned(call)
        if isinstance(app, Answer):
            return app
        name = call.params["name"]
        return Answer(200, _feature_view(app, name, call)) if name in app.features else not_found(name, "Feature")

    def _put_feature(self, call: Call) -> Answer:
        app = self._provisioned(call)
        if isinstance(app, Answer):
            return app
        name, body = call.params["name"], call.json()
        if name not in app.features:
            return not_found(name, "Feature")
        if not body:  # recorded: an empty body is malformed
            return malformed()
        if not set(body) <= set(app.features[name]):
            return invalid("capabilities")
        with self._state.lock:
            app.features[name] = _merged(app.features[name], body)
        return Answer(200, _feature_view(app, name, call))

    def _provisioned(self, call: Call) -> App | Answer:
        """The app, if its features can be seen at all (recorded and in Okta's OpenAPI document: 400 otherwise)."""
        app = self._state.apps.get(call.params["app_id"])
        if app is None:
            return _no_app(call)
        if app.kind is Kind.UNSUPPORTED:
            return invalid("feature", "Provisioning is not supported.")
        if not app.enabled:
            return invalid("feature", "Provisioning is not enabled for the app instance.")
        return app

    def _mappings(self, call: Call) -> Answer:
        if call.params["app_id"] not in self._state.apps:
            return _no_app(call)
        found = [
            mapping
            for mapping in list(self.group_pushes.values())
            if mapping.app_id == call.params["app_id"]
            and call.query.get("status", _status(mapping)) == _status(mapping)
            and call.query.get("sourceGroupId", mapping.group_id) == mapping.group_id
        ]
        # Recorded: the self link forgets the filter parameters.
        return Answer(
            200, [_mapping_view(mapping, call) for mapping in found], (("link", f'<{call.url}>; rel="self"'),)
        )

    def _mapping(self, call: Call) -> Answer:
        mapping = self.group_pushes.get(call.params["mapping_id"])
        if mapping is None or mapping.app_id != call.params["app_id"]:
            return not_found(call.params["mapping_id"], "GroupPushMapping")
        return Answer(200, _mapping_view(mapping, call))


def _feature_view(app: App, name: str, call: Call) -> dict[str, Any]:
    href = f"{_origin(call)}/api/v1/apps/{app.id}/features/{name}"
    return {
        "name": name,
        "status": "ENABLED",
        "description": _DESCRIPTIONS[name],
        "capabilities": app.features[name],
        "_links": {"self": {"href": href, "hints": {"allow": ["GET", "PUT"]}}},
    }


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A PUT may leave parts out; they stay."""
    both = dict(old)
    for name, value in new.items():
        before = old.get(name)
        both[name] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return both


def _status(mapping: GroupPush) -> str:
    return "ERROR" if mapping.error else "ACTIVE"


def _mapping_view(mapping: GroupPush, call: Call) -> dict[str, Any]:
    """Recorded: what there is nothing to say about is left out."""
    origin = _origin(call)
    view: dict[str, Any] = {
        "id": mapping.id,
        "status": _status(mapping),
        "sourceGroupId": mapping.group_id,
        "created": stamp(mapping.created),
        "lastUpdated": stamp(mapping.updated),
        "_links": {
            "app": {"href": f"{origin}/api/v1/apps/{mapping.app_id}"},
            "sourceGroup": {"href": f"{origin}/api/v1/groups/{mapping.group_id}"},
        },
    }
    if mapping.target_id:
        view["targetGroupId"] = mapping.target_id
        view["_links"]["targetGroup"] = {"href": f"{origin}/api/v1/groups/{mapping.target_id}"}
    if mapping.last_push:
        view["lastPush"] = stamp(mapping.last_push)
    if mapping.error:
        view["errorSummary"] = mapping.error
    return view


def _origin(call: Call) -> str:
    return call.url.partition("/api/")[0]


def _no_app(call: Call) -> Answer:
    return not_found(call.params["app_id"], "AppInstance")
