"""Org2Org with OAuth 2.0: the spoke's signing key, its published key set, and the call for a token at the hub.

The private half never leaves the org, as at Okta (Okta docs: secure-oauth-between-orgs).
"""

import json
import ssl
import threading
import uuid
from typing import Any

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from rotator.sandbox.okta_dpop import make_proof
from rotator.sandbox.okta_scim import Remote
from rotator.sandbox.okta_state import App, State
from rotator.sandbox.okta_wire import Answer, Call, Endpoint, not_found

_SCOPES = "okta.users.manage okta.groups.manage"  # a spoke needs both
_SECONDS = 15.0


class TwoLegged:
    def __init__(self, state: State, trust: ssl.SSLContext) -> None:
        self._state = state
        self._http = httpx.Client(
            verify=trust, trust_env=False, timeout=_SECONDS, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._keys: dict[str, tuple[rsa.RSAPrivateKey, dict[str, Any]]] = {}
        self._lock = threading.Lock()

    def endpoints(self) -> list[Endpoint]:
        path = "/api/v1/apps/{app_id}/connections/default/jwks"
        public = lambda: self._state.switches.jwks_public  # noqa: E731 - read at each call, the switch may move
        return [Endpoint("GET", path, self._jwks, ("okta.apps.read",), public=public)]

    def test(self, app: App, client_id: str) -> Remote:
        """Asks the hub at the app's base URL for a token, as the service app there."""
        url = f"{app.base_url.rstrip('/')}/oauth2/v1/token"
        nonce = None
        try:
            for _ in range(2):  # the second time with the nonce that the hub asked for
                response = self._http.post(
                    url, data=self._form(app, client_id, url), headers=self._proof(app, url, nonce)
                )
                nonce = response.headers.get("dpop-nonce")
                if response.status_code != 400 or nonce is None:
                    break
        except httpx.HTTPError as failure:
            return Remote(0, "verify", f"Invalid URL. {type(failure).__name__}.")
        return Remote(response.status_code, "verify", "Invalid URL. Not authorized.")

    def _form(self, app: App, client_id: str, url: str) -> dict[str, str]:
        key, jwk = self._key(app)
        now = int(self._state.epoch())
        claims = {"iss": client_id, "sub": client_id, "aud": url, "iat": now, "exp": now + 300, "jti": uuid.uuid4().hex}
        return {
            "grant_type": "client_credentials",
            "scope": _SCOPES,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_assertion": jwt.encode(claims, key, algorithm="RS256", headers={"kid": jwk["kid"]}),
        }

    def _proof(self, app: App, url: str, nonce: str | None) -> dict[str, str]:
        key, jwk = self._key(app)
        public = {name: jwk[name] for name in ("kty", "n", "e")}
        return {"DPoP": make_proof(key, public, method="POST", url=url, now=self._state.epoch(), nonce=nonce)}

    def _key(self, app: App) -> tuple[rsa.RSAPrivateKey, dict[str, Any]]:
        with self._lock:
            if app.id not in self._keys:
                key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
                public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
                jwk = {"kid": self._state.new_id("kid"), "use": "sig", "alg": "RSA"}  # "RSA" is what Okta writes there
                self._keys[app.id] = key, jwk | {name: public[name] for name in ("kty", "n", "e")}
            return self._keys[app.id]

    def _jwks(self, call: Call) -> Answer:
        app = self._state.apps.get(call.params["app_id"])
        if app is None:
            return not_found(call.params["app_id"], "AppInstance")
        if app.name != "okta_org2org":
            return Answer(200, {"jwks": None})  # okta-sdk-dotnet's tests: null for an app without OAuth 2.0
        keys = {"keys": [self._key(app)[1]]}
        return Answer(200, keys if self._state.switches.jwks_bare else {"jwks": keys})
