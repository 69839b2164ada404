"""DPoP proofs: checking the one on a request (RFC 9449 §4.3), and making one when Okta itself is the client."""

import base64
import hashlib
import json
import threading
import uuid
from dataclasses import dataclass
from typing import Any

import jwt

ASYMMETRIC = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
_MAX_AGE = 300  # seconds; Okta docs: guides/dpop
_PRIVATE = {"d", "p", "q", "dp", "dq", "qi", "k"}
_THUMBPRINT_MEMBERS = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y")}


class BadProofError(ValueError):
    """The proof can't be accepted; the message is what Okta's `error_description` would say."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What a good proof tells: the thumbprint of its key (RFC 7638) and its nonce."""

    thumbprint: str
    nonce: str | None


class ProofChecker:
    """Remembers each `jti`: a proof is good once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def check(self, proof: str, *, method: str, url: str, now: float, access_token: str | None = None) -> Proof:
        """The proof for this request, or BadProofError. `url` without its query; `now` by the server's clock."""
        try:
            header = jwt.get_unverified_header(proof)
            jwk = header.get("jwk")
            if header.get("typ") != "dpop+jwt" or header.get("alg") not in ASYMMETRIC or not isinstance(jwk, dict):
                raise BadProofError("The DPoP proof JWT header is invalid.")
            if _PRIVATE & set(jwk):
                raise BadProofError("The DPoP proof JWT header must not hold a private key.")
            claims = jwt.decode(proof, jwt.PyJWK(jwk, header["alg"]), algorithms=[header["alg"]], options=UNCHECKED)
        except jwt.PyJWTError:
            raise BadProofError("The DPoP proof JWT is invalid.") from None
        if claims.get("htm") != method or claims.get("htu") != url:
            raise BadProofError("The DPoP proof is for another request.")
        issued, jti = claims.get("iat"), claims.get("jti")
        if not isinstance(issued, (int, float)) or abs(now - issued) > _MAX_AGE:
            raise BadProofError("The DPoP proof is too old or from the future.")
        if access_token is not None and claims.get("ath") != ath(access_token):
            raise BadProofError("The DPoP proof is for another access token.")
        with self._lock:
            if not isinstance(jti, str) or jti in self._seen:
                raise BadProofError("The DPoP proof JWT ID is missing or has been used.")
            self._seen.add(jti)
        return Proof(thumbprint(jwk), claims.get("nonce"))


# Times are judged by the sandbox's own clock, which may be ahead of the machine's.
_CLAIMS = ("exp", "iat", "nbf", "aud", "iss", "sub", "jti")  # and named one by one, for Okta's own words
UNCHECKED: Any = {f"verify_{claim}": False for claim in _CLAIMS}


def make_proof(key: Any, jwk: dict[str, Any], *, method: str, url: str, now: float, nonce: str | None) -> str:
    """A proof for a token request, signed RS256."""
    claims = {"htm": method, "htu": url, "iat": int(now), "jti": uuid.uuid4().hex}
    if nonce is not None:
        claims["nonce"] = nonce
    return jwt.encode(claims, key, algorithm="RS256", headers={"typ": "dpop+jwt", "jwk": jwk})


def ath(access_token: str) -> str:
    return _b64(hashlib.sha256(access_token.encode()).digest())


def thumbprint(jwk: dict[str, Any]) -> str:
    """RFC 7638; BadProofError for a key that is neither RSA nor EC."""
    members = _THUMBPRINT_MEMBERS.get(str(jwk.get("kty")))
    if members is None:
        raise BadProofError("The DPoP proof key type is not supported.")
    canonical = json.dumps({name: jwk.get(name) for name in members}, separators=(",", ":"), sort_keys=True)
    return _b64(hashlib.sha256(canonical.encode()).digest())


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
