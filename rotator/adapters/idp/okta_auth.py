"""How the rotator signs in to Okta: an API token, or a service app with private_key_jwt and DPoP.

    ssws(token)                      -> Auth
    ServiceAppAuth(http, budget, client_id=…, key=PEM, kid=…, scopes=(…), clock=…, dpop="auto")   -> Auth

Okta docs: "Implement OAuth for Okta with a service app" and "Configure DPoP"; RFC 7523 (assertion), RFC 9449 (DPoP).
DPoP "auto" begins without a proof and turns it on when the org asks (recorded answer: 400 invalid_dpop_proof "The DPoP
proof JWT header is missing."): a service app may or may not be bound to DPoP, what Okta does with an unasked-for proof
is documented nowhere, and asking costs one request in a process's life. An app made in the Admin Console demands DPoP
by default; one made by API does not.

Keeps I5: the private key, assertions and access tokens are Secrets or live for one request; OAuth's error descriptions
are matched, never shown.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import uuid
from collections.abc import Mapping
from typing import Any, Literal

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt.algorithms import ECAlgorithm

from rotator import errors
from rotator.adapters.http import Auth, HttpAnswer, HttpClient, SecretHeader, status_error
from rotator.adapters.ratelimit import RateBudget
from rotator.core.secret import Secret
from rotator.ports import Clock

TOKEN_PATH = "/oauth2/v1/token"  # noqa: S105  a path; Okta scopes come from the org's own server, not /oauth2/default
DOING = "signing in to Okta"
ASSERTION_LIFE = 300  # seconds; Okta allows at most an hour
EARLY = 60.0  # seconds before its end at which a token is replaced
SKEW = 30.0  # seconds by which clocks may differ before we use the server's
ATTEMPT = 8.0  # deadline of one token request; at most four make a sign-in
ATTEMPTS = 4  # plain, DPoP, DPoP with nonce, and one more after learning the server's clock

# OAuth error -> what a person can do (Okta docs: OAuth 2.0 error codes)
FIXES: dict[str, str] = {
    "invalid_client": "Check client_id, kid and the private key against the service app, and this host's clock",
    "invalid_scope": "A scope is unknown or not granted: a super admin grants it under the service app's Okta API Scopes",
    "unauthorized_client": "Allow the service app the grant type client_credentials",
    "access_denied": "Give the service app an admin role, and assign it where a policy asks for that",
    "invalid_request": "The org does not take this sign-in: is the app a service app that uses private_key_jwt?",
    "invalid_dpop_proof": 'The org refuses the DPoP proof: check this host\'s clock; dpop must not be "off"',
    "use_dpop_nonce": 'The org demands DPoP: set dpop = "auto"',
}


def ssws(token: Secret) -> Auth:
    """An Okta API token. It expires 30 days after its last use and dies with its owner."""
    return SecretHeader("Authorization", token, "SSWS ")


class ServiceAppAuth:
    """OAuth 2.0 client credentials; one token for all threads, fetched under a lock."""

    def __init__(
        self,
        http: HttpClient,
        budget: RateBudget,
        *,
        client_id: str,
        key: Secret,
        scopes: tuple[str, ...],
        clock: Clock,
        kid: str | None = None,
        dpop: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        """`key`: PEM of an RSA (>= 2048 bit) or P-256/384/521 private key. Misconfigured when it is something else."""
        self._http = http
        self._budget = budget
        self._client_id = client_id
        self._kid = kid
        self._scopes = " ".join(scopes)
        self._clock = clock
        self._may_turn_on = dpop == "auto"
        self._dpop = dpop == "on"
        self._key, self._algorithm = _private_key(key, http.system)
        self._proof_key = ec.generate_private_key(ec.SECP256R1())  # of this process; nobody needs to know it again
        self._jwk = _public_jwk(self._proof_key)
        self._nonce: str | None = None  # of the token endpoint
        self._api_nonce: str | None = None
        self._skew = 0.0
        self._token: Secret | None = None
        self._bound = False
        self._ends = 0.0
        self._lock = threading.Lock()

    def headers(self, method: str, url: str) -> Mapping[str, str]:
        with self._lock:
            if self._token is None or self._clock.monotonic() >= self._ends:
                self._fetch()
            token, bound = self._token, self._bound
        if token is None:  # _fetch sets it or raises
            raise errors.Denied(DOING, system=self._http.system, detail="no access token")
        if not bound:
            return {"Authorization": f"Bearer {token.reveal()}"}
        digest = hashlib.sha256(token.reveal().encode()).digest()
        proof = self._proof(method, url, self._api_nonce, ath=_b64(digest))
        return {"Authorization": f"DPoP {token.reveal()}", "DPoP": proof}

    def renew(self, answer: HttpAnswer) -> bool:
        """After a 401: learn the server's clock and nonce, drop the token, try once more."""
        with self._lock:
            self._learn(answer)
            if "use_dpop_nonce" in answer.header("www-authenticate") and answer.header("dpop-nonce"):
                self._api_nonce = answer.header("dpop-nonce")
            self._token = None
        return True

    def _fetch(self) -> None:
        for _ in range(ATTEMPTS):
            answer = self._ask()
            if answer.status == 200:
                self._keep(answer)
                return
            if not self._another_try(answer, _oauth_error(answer)):
                raise self._refused(answer)
        raise self._refused(answer)

    def _another_try(self, answer: HttpAnswer, error: str) -> bool:
        """Whether this refusal tells us how to ask better."""
        nonce = answer.header("dpop-nonce")
        can_prove = self._dpop or self._may_turn_on
        clock_learnt = self._learn(answer)
        if error == "use_dpop_nonce" and can_prove and nonce:
            self._dpop, self._nonce = True, nonce
            return True
        if error == "invalid_dpop_proof" and can_prove and not self._dpop:
            self._dpop = True
            return True
        return error in {"invalid_client", "invalid_dpop_proof"} and clock_learnt

    def _ask(self) -> HttpAnswer:
        self._budget.before("token", doing=DOING, urgent=True)
        url = self._http.base_url + TOKEN_PATH
        headers = {"DPoP": self._proof("POST", url, self._nonce)} if self._dpop else {}

        def judge(answer: HttpAnswer) -> errors.PortError | None:
            self._budget.after("token", answer)
            if answer.status == 429:
                return self._budget.turned_away("token", answer, doing=DOING)
            if answer.status in {400, 401, 403}:  # read by _another_try and _refused
                return None
            return status_error(answer, doing=DOING, system=self._http.system, changing=False)

        try:
            return self._http.request(
                "POST",
                TOKEN_PATH,
                doing=DOING,
                operation="token",
                changing=False,
                headers=headers,
                form={
                    "grant_type": "client_credentials",
                    "scope": self._scopes,
                    "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                    "client_assertion": self._assertion(url),
                },
                judge=judge,
                seconds=ATTEMPT,
            )
        except errors.PortError:
            self._budget.lost("token")
            raise

    def _keep(self, answer: HttpAnswer) -> None:
        body = answer.json if isinstance(answer.json, dict) else {}
        token, life = body.get("access_token"), body.get("expires_in")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise errors.Misconfigured(
                DOING, system=self._http.system, detail="the token endpoint answered without an access token"
            )
        self._learn(answer)
        self._nonce = answer.header("dpop-nonce") or self._nonce
        self._token = Secret(token)
        self._bound = str(body.get("token_type", "")).lower() == "dpop"
        seconds = float(life) if isinstance(life, int | float) and 0 < life < 86400 else 3600.0
        self._ends = self._clock.monotonic() + max(seconds - EARLY, seconds / 2)

    def _learn(self, answer: HttpAnswer) -> bool:
        """Take over the server's clock when ours is off by more than 30 s. True when that changed what we send."""
        skew = answer.skew if abs(answer.skew) > SKEW else 0.0
        changed = abs(skew - self._skew) > SKEW
        self._skew = skew
        return changed

    def _refused(self, answer: HttpAnswer) -> errors.PortError:
        error = _oauth_error(answer)
        if answer.header("dpop-nonce") and error == "use_dpop_nonce" and self._dpop:
            fix = "The org asks for a new nonce again and again: check this host's clock"
        else:
            fix = FIXES.get(error, "The service app's sign-in was refused: check client_id, key and org URL")
        detail = f"HTTP {answer.status} {error}".rstrip()
        return errors.Denied(DOING, system=self._http.system, detail=detail, fix=fix)

    def _assertion(self, audience: str) -> str:
        now = self._now()
        claims = {
            "iss": self._client_id,
            "sub": self._client_id,
            "aud": audience,
            "iat": now,
            "exp": now + ASSERTION_LIFE,
            "jti": str(uuid.uuid4()),  # one use: made anew for every request
        }
        return jwt.encode(claims, self._key, self._algorithm, headers={"kid": self._kid} if self._kid else None)

    def _proof(self, method: str, url: str, nonce: str | None, ath: str | None = None) -> str:
        claims: dict[str, Any] = {"htm": method, "htu": url, "iat": self._now(), "jti": str(uuid.uuid4())}
        if nonce:
            claims["nonce"] = nonce
        if ath:
            claims["ath"] = ath
        return jwt.encode(claims, self._proof_key, "ES256", headers={"typ": "dpop+jwt", "jwk": self._jwk})

    def _now(self) -> int:
        return int(self._clock.now().timestamp() + self._skew)


def _private_key(key: Secret, system: str) -> tuple[rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, str]:
    curves = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
    try:
        loaded = load_pem_private_key(key.reveal().encode(), password=None)
    except (ValueError, TypeError, UnicodeError):
        loaded = None  # the cause quotes nothing we want to see (I5)
    if isinstance(loaded, rsa.RSAPrivateKey) and loaded.key_size >= 2048:
        return loaded, "RS256"
    if isinstance(loaded, ec.EllipticCurvePrivateKey) and loaded.curve.name in curves:
        return loaded, curves[loaded.curve.name]
    raise errors.Misconfigured(
        DOING,
        system=system,
        detail="the private key can't be used",
        fix="Give an unencrypted PEM of an RSA key of at least 2048 bits or of a P-256, P-384 or P-521 key",
    )


def _public_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    parts = json.loads(ECAlgorithm.to_jwk(key.public_key()))
    return {name: parts[name] for name in ("kty", "crv", "x", "y")}


def _oauth_error(answer: HttpAnswer) -> str:
    """The error's word when it is one we know, else nothing: text from outside is not shown."""
    body = answer.json if isinstance(answer.json, dict) else {}
    word = body.get("error")
    return word if isinstance(word, str) and word in FIXES else ""


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
