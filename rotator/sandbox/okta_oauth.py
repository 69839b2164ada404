"""OAuth 2.0 of the sandbox Okta: service apps, the token endpoint with `private_key_jwt` and DPoP, and access tokens.

Only the org's own authorization server and only client credentials, as for Okta's own scopes (Okta docs:
implement-oauth-for-okta-serviceapp, guides/dpop).
"""

import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import jwt

from rotator.sandbox.okta_dpop import ASYMMETRIC, UNCHECKED, BadProofError, ProofChecker
from rotator.sandbox.okta_limits import insufficient_scope
from rotator.sandbox.okta_log import SystemLog
from rotator.sandbox.okta_state import State
from rotator.sandbox.okta_wire import Answer, Call, Caller, Endpoint, error

_TOKEN_SECONDS = 3600  # fixed for Okta's scopes
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ALGORITHMS = " ".join(ASYMMETRIC)


@dataclass(slots=True)
class ServiceApp:
    """A client with its public keys and what a super admin granted it."""

    id: str
    keys: list[dict[str, Any]]
    scopes: frozenset[str]
    dpop: bool


@dataclass(frozen=True, slots=True)
class _Grant:
    client_id: str
    scopes: frozenset[str]
    expires: float  # Unix seconds, the org's clock
    thumbprint: str | None = field(repr=False)


class OAuth:
    def __init__(self, state: State, log: SystemLog) -> None:
        self._state = state
        self._log = log
        self._apps: dict[str, ServiceApp] = {}
        self._grants: dict[str, _Grant] = {}
        self._used_assertions: set[tuple[str, str]] = set()
        self._proofs = ProofChecker()
        self._nonces = [secrets.token_urlsafe(24)]
        self._lock = threading.Lock()

    def register(self, public_jwk: Mapping[str, Any], scopes: frozenset[str], *, dpop: bool) -> str:
        """A new service app; its client id."""
        app = ServiceApp(self._state.new_id("0oa"), [dict(public_jwk)], scopes, dpop)
        self._apps[app.id] = app
        return app.id

    def replace_keys(self, client_id: str, public_jwks: list[Mapping[str, Any]]) -> None:
        """What an admin does: the client's keys are these from now on. Tokens already given out live on."""
        self._apps[client_id].keys = [dict(jwk) for jwk in public_jwks]

    def rotate_nonce(self) -> None:
        """What Okta does daily; the last three nonces are taken (Okta docs: guides/dpop)."""
        with self._lock:
            self._nonces = [secrets.token_urlsafe(24), *self._nonces[:2]]

    def expire_nonces(self) -> None:
        """As if three days had passed."""
        with self._lock:
            self._nonces = [secrets.token_urlsafe(24)]

    def endpoints(self) -> list[Endpoint]:
        form = "application/x-www-form-urlencoded"
        return [Endpoint("POST", "/oauth2/v1/token", self._token, public=lambda: True, media_type=form)]

    # --- access tokens ------------------------------------------------------------------------------------------------

    def sign_in(self, scheme: str, token: str, call: Call, endpoint: Endpoint) -> Caller | Answer:
        """The client behind `Authorization: <scheme> <token>`, if the token is live, bound right and has the scopes."""
        grant = self._grants.get(token)
        if grant is None or self._state.epoch() >= grant.expires:
            return _unauthorized(call, scheme, "invalid_token", "The access token is invalid or expired.")
        if grant.thumbprint is not None:
            proof = call.headers.get("dpop")
            if proof is None or scheme != "dpop":
                return _oauth_error(400, "invalid_request", "The resource request requires a DPoP proof.")
            try:
                checked = self._proofs.check(
                    proof, method=call.method, url=call.url, now=self._state.epoch(), access_token=token
                )
            except BadProofError as bad:
                return _unauthorized(call, "dpop", "invalid_dpop_proof", str(bad))
            if checked.thumbprint != grant.thumbprint:
                return _unauthorized(call, "dpop", "invalid_dpop_proof", "The DPoP proof is by another key.")
        if not all(_covers(grant.scopes, scope) for scope in endpoint.scopes):
            return insufficient_scope(call.url, endpoint.scopes)
        return Caller(id=grant.client_id, type="PublicClientApp", name=grant.client_id)

    # --- the token endpoint -------------------------------------------------------------------------------------------

    def _token(self, call: Call) -> Answer:
        form = {name: values[0] for name, values in parse_qs(call.body.decode("utf-8", "replace")).items()}
        if form.get("grant_type") != "client_credentials":
            return _oauth_error(400, "unsupported_grant_type", "The grant type is not supported.")
        if form.get("client_assertion_type") != _ASSERTION_TYPE:
            return _oauth_error(401, "invalid_client", "Client authentication must be private_key_jwt.")
        app = self._authenticate(form.get("client_assertion", ""), call.url)
        if isinstance(app, Answer):
            return app
        thumbprint = None
        if app.dpop:
            bound = self._bind(call)
            if isinstance(bound, Answer):
                return bound
            thumbprint = bound
        scopes = frozenset(form.get("scope", "").split())
        if not scopes or not scopes <= app.scopes:
            return _oauth_error(400, "invalid_scope", "One or more scopes are not configured for the client.")
        token = "eyJ" + secrets.token_urlsafe(90)
        self._grants[token] = _Grant(app.id, scopes, self._state.epoch() + _TOKEN_SECONDS, thumbprint)
        self._log.write("app.oauth2.token.grant.access_token", "SUCCESS", caller=_client(app.id))
        body = {
            "token_type": "DPoP" if thumbprint else "Bearer",
            "expires_in": _TOKEN_SECONDS,
            "access_token": token,
            "scope": " ".join(sorted(scopes)),
        }
        return Answer(200, body)

    def _authenticate(self, assertion: str, audience: str) -> ServiceApp | Answer:
        """The client that signed the assertion (Okta docs: implement-oauth-for-okta-serviceapp)."""
        try:
            header = jwt.get_unverified_header(assertion)
            issuer = jwt.decode(assertion, options={"verify_signature": False}).get("iss")
        except jwt.PyJWTError:
            return self._no_client("unknown", "The client_assertion is not a JWT.")
        app = self._apps.get(issuer) if isinstance(issuer, str) else None
        if app is None:
            return self._no_client("unknown", "The client_assertion issuer is not a known client.")
        kid = header.get("kid")
        keys = [jwk for jwk in app.keys if kid is None or jwk.get("kid") == kid]
        if header.get("alg") not in ASYMMETRIC or len(keys) != 1:
            return self._no_client(app.id, "The client_assertion JWT kid is invalid.")
        try:
            key = jwt.PyJWK(keys[0], header["alg"])
            claims = jwt.decode(assertion, key, algorithms=[header["alg"]], options=UNCHECKED)
        except jwt.PyJWTError:
            return self._no_client(app.id, "The client_assertion signature is invalid.")
        wrong = self._wrong_claim(app, claims, audience)
        return self._no_client(app.id, wrong) if wrong else app

    def _wrong_claim(self, app: ServiceApp, claims: Mapping[str, Any], audience: str) -> str | None:
        now, expires, issued, jti = self._state.epoch(), claims.get("exp"), claims.get("iat", 0), claims.get("jti")
        if claims.get("sub") != app.id:
            return "The client_assertion subject is invalid."
        if claims.get("aud") != audience:
            return "The client_assertion audience is invalid."
        if not isinstance(expires, (int, float)) or expires <= now:
            return "The client_assertion token is expired."
        if expires > now + 3600:
            return "The client_assertion token expires too far in the future."
        if issued > now + 60:
            return "The client_assertion token was issued in the future."
        if jti is None:
            return None
        with self._lock:
            if (app.id, str(jti)) in self._used_assertions:
                return "The client_assertion token has been used."
            self._used_assertions.add((app.id, str(jti)))
        return None

    def _bind(self, call: Call) -> str | Answer:
        """The thumbprint the token will be bound to; the first proof is always sent back for a nonce."""
        proof = call.headers.get("dpop")
        if proof is None:
            return _oauth_error(400, "invalid_dpop_proof", "The DPoP proof JWT header is missing.")
        try:
            checked = self._proofs.check(proof, method="POST", url=call.url, now=self._state.epoch())
        except BadProofError as bad:
            return _oauth_error(400, "invalid_dpop_proof", str(bad))
        with self._lock:
            nonces = list(self._nonces)
        if checked.nonce not in nonces:
            description = "Authorization server requires nonce in DPoP proof."
            return _oauth_error(400, "use_dpop_nonce", description, (("dpop-nonce", nonces[0]),))
        return checked.thumbprint

    def _no_client(self, client_id: str, description: str) -> Answer:
        event = "app.oauth2.invalid_client_credentials"
        self._log.write(event, "FAILURE", caller=_client(client_id), reason=description)
        return _oauth_error(401, "invalid_client", description)


def _client(client_id: str) -> Caller:
    return Caller(id=client_id, type="PublicClientApp", name=client_id)


def _covers(granted: frozenset[str], scope: str) -> bool:
    """A manage scope covers reading."""
    return scope in granted or scope.replace(".read", ".manage") in granted


def _oauth_error(status: int, code: str, description: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, {"error": code, "error_description": description}, headers)


def _unauthorized(call: Call, scheme: str, code: str, description: str) -> Answer:
    origin = call.url.partition("/api/")[0]
    kind = f'DPoP algs="{_ALGORITHMS}", ' if scheme == "dpop" else "Bearer "
    challenge = (
        f'{kind}authorization_uri="{origin}/oauth2/v1/authorize", realm="{origin}", '
        f'error="{code}", error_description="{description}"'
    )
    return error(401, "E0000011", "Invalid token provided", headers=(("www-authenticate", challenge),))
