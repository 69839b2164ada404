"""Okta's official Python SDK, narrowed to what the tests ask it. Its errors become RuntimeError with Okta's words.

The SDK needs OKTA_TESTING_TESTINGDISABLEHTTPSCHECK=true in the environment to speak plain http, and its cache must be
off, or a read after a write may be stale.
"""

from __future__ import annotations

from typing import Any

from okta.client import Client
from okta.models import (
    ProvisioningConnectionTokenRequest,
    ProvisioningConnectionTokenRequestProfile,
    UpdateDefaultProvisioningConnectionForApplicationRequest,
)


class Sdk:
    def __init__(self, url: str, token: str) -> None:
        self._config = {"orgUrl": url, "token": token, "cache": {"enabled": False}}

    async def status(self, app: str) -> str:
        connection = await self._call("get_default_provisioning_connection_for_application", app)
        return str(connection.status.value)

    async def push(self, app: str, key: str, *, activate: bool) -> str:
        profile = ProvisioningConnectionTokenRequestProfile(auth_scheme="TOKEN", token=key)
        request = UpdateDefaultProvisioningConnectionForApplicationRequest(
            ProvisioningConnectionTokenRequest(profile=profile)
        )
        connection = await self._call(
            "update_default_provisioning_connection_for_application", app, request, activate=activate
        )
        return str(connection.status.value)

    async def activate(self, app: str) -> None:
        await self._call("activate_default_provisioning_connection_for_application", app)

    async def deactivate(self, app: str) -> None:
        await self._call("deactivate_default_provisioning_connection_for_application", app)

    async def event_types(self, query: str) -> list[str]:
        return [event.event_type for event in await self._call("list_log_events", filter=query)]

    async def feature_names(self, app: str) -> list[str]:
        return [str(feature.name.value) for feature in await self._call("list_features_for_application", app)]

    async def _call(self, method: str, *args: Any, **options: Any) -> Any:
        async with Client(self._config) as client:
            *answer, problem = await getattr(client, method)(*args, **options)
        if problem:
            raise RuntimeError(str(problem))
        return answer[0]
