"""How the rotator signs in to Vault: by token, AppRole, Kubernetes or JWT.

Secrets are fetched anew at every login, so that a rotated secret id or an agent's fresh token file takes effect (I5: they
are held no longer than that).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rotator.core.secret import Secret
from rotator.errors import Misconfigured

SERVICE_ACCOUNT_JWT = "/var/run/secrets/kubernetes.io/serviceaccount/token"


@dataclass(frozen=True, slots=True)
class TokenAuth:
    """A token that somebody else made. `token` gives it, fresh at each call."""

    token: Callable[[], Secret]


@dataclass(frozen=True, slots=True)
class AppRoleAuth:
    role_id: str
    secret_id: Callable[[], Secret]
    mount: str = "approle"


@dataclass(frozen=True, slots=True)
class KubernetesAuth:
    role: str
    jwt_file: str = SERVICE_ACCOUNT_JWT
    mount: str = "kubernetes"


@dataclass(frozen=True, slots=True)
class JwtAuth:
    role: str
    jwt_file: str
    mount: str = "jwt"


Auth: TypeAlias = TokenAuth | AppRoleAuth | KubernetesAuth | JwtAuth


@dataclass(frozen=True, slots=True)
class Login:
    """One login: `send` makes the call with a client that has no token; `secret` must not appear in an error."""

    send: Callable[[Any], Any]
    secret: Secret


def login(auth: AppRoleAuth | KubernetesAuth | JwtAuth) -> Login:
    """The call that gets a token. Misconfigured when a file can't be read."""
    if isinstance(auth, AppRoleAuth):
        secret_id = auth.secret_id()
        return Login(
            lambda vault: vault.auth.approle.login(
                auth.role_id, secret_id.reveal(), use_token=False, mount_point=auth.mount
            ),
            secret_id,
        )
    jwt = _read(auth.jwt_file)
    if isinstance(auth, KubernetesAuth):
        return Login(
            lambda vault: vault.auth.kubernetes.login(auth.role, jwt.reveal(), use_token=False, mount_point=auth.mount),
            jwt,
        )
    return Login(
        lambda vault: vault.auth.jwt.jwt_login(auth.role, jwt.reveal(), use_token=False, path=auth.mount),
        jwt,
    )


def _read(path: str) -> Secret:
    try:
        text = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = type(error).__name__
        text = ""
    else:
        why = "it is empty"
    if not text:
        raise Misconfigured(
            "read the JWT to sign in with",
            system="vault",
            detail=f"{path}: {why}",
            fix="Mount the service account's token there, or correct jwt_file",
        )
    return Secret(text)
