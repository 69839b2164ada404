"""The table of kinds, Grafana's preset and the target of a person."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

import pytest

from rotator import errors
from rotator.adapters.targets import KINDS
from rotator.adapters.targets.grafana import GrafanaSettings, grafana_description, grafana_target
from rotator.adapters.targets.http import AdminHeader, HttpTarget
from rotator.adapters.targets.manual import ManualSettings, manual_target
from rotator.adapters.targets.scim import ScimSettings
from rotator.core.model import By
from rotator.core.secret import Secret
from rotator.ports import Answer, KeyInfo, LiveKeys, Probe
from rotator.sandbox.target import TargetSandbox
from tests.fakes.wire import Reply, StillClock, Wire, target_over

SCIM = ScimSettings("https://target.example/scim/v2")


def test_every_kind_names_its_settings_and_its_builder() -> None:
    assert set(KINDS) == {"http", "grafana", "manual"}
    assert all(is_dataclass(kind.settings) for kind in KINDS.values())


# --- Grafana ------------------------------------------------------------------------------------------------------------


def grafana(wire: Wire, seconds_to_live: int | None = None) -> HttpTarget:
    return target_over(wire, grafana_description("7", seconds_to_live))


def test_grafanas_capabilities() -> None:
    c = grafana(Wire(Reply())).capabilities
    assert (c.live_keys, c.mint, c.revoke, c.lists, c.labels) == (LiveKeys.MANY, By.API, True, True, True)
    assert (c.last_used, c.supplies, c.min_settle) == (False, False, 0.0)


@pytest.mark.parametrize(
    ("seconds", "body"),
    [
        pytest.param(None, {"name": "rk-1"}, id="never expires"),
        pytest.param(86400, {"name": "rk-1", "secondsToLive": 86400}, id="expires: a number, not text"),
    ],
)
def test_grafana_mints_under_the_label(seconds: int | None, body: dict[str, Any]) -> None:
    wire = Wire(Reply(200, json={"id": 7, "name": "rk-1", "key": "glsa_x"}))
    minted = grafana(wire, seconds).mint("rk-1")
    assert (minted.key.reveal(), minted.key_id, minted.expires_at is None) == ("glsa_x", "7", seconds is None)
    assert wire.lines() == ["POST /base/api/serviceaccounts/7/tokens"]
    assert wire.body() == body


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        pytest.param(Reply(409, json={"message": "x"}), errors.Conflict, id="name taken, older versions"),
        pytest.param(
            Reply(400, json={"messageId": "serviceaccounts.ErrTokenAlreadyExists"}),
            errors.Conflict,
            id="name taken, newer versions",
        ),
        pytest.param(
            Reply(400, json={"messageId": "serviceaccounts.ErrInvalidInput"}),
            errors.Misconfigured,
            id="a lifetime that the server does not allow",
        ),
    ],
)
def test_grafana_says_when_a_name_is_taken(reply: Reply, kind: type[errors.PortError]) -> None:
    with pytest.raises(kind) as told:
        grafana(Wire(reply)).mint("rk-1")
    assert type(told.value) is kind


def test_grafana_lists_live_tokens_only() -> None:
    tokens = [
        {"id": 1, "name": "rk-1", "created": None, "expiration": None, "hasExpired": False},
        {"id": 2, "name": "rk-2", "expiration": "2026-01-01T00:00:00Z", "hasExpired": True},
        {"id": 3, "name": "rk-3", "expiration": None, "hasExpired": False, "isRevoked": True},
    ]
    assert grafana(Wire(Reply(json=tokens))).list_keys() == (KeyInfo("1", "rk-1"),)


def test_grafana_revokes_by_id() -> None:
    wire = Wire(Reply(200, json={"message": "API key deleted"}))
    grafana(wire).revoke("4")
    assert wire.lines() == ["DELETE /base/api/serviceaccounts/7/tokens/4"]


@pytest.mark.parametrize("account", ["7/tokens/1", "../../users"])
def test_an_odd_service_account_stays_one_path_segment(account: str) -> None:
    wire = Wire(Reply(json=[]))
    target_over(wire, grafana_description(account)).list_keys()
    assert wire.lines()[0].count("/") == 5


def test_grafanas_scim_address_follows_from_its_url_and_another_one_can_be_given() -> None:
    with TargetSandbox("grafana") as sandbox:
        key = Secret(sandbox.seed_key("old")[0])

        def built(**more: Any) -> HttpTarget:
            settings = GrafanaSettings(
                "g", sandbox.url + "/", str(sandbox.service_account_id), lambda: Secret(sandbox.admin_token), **more
            )
            return grafana_target(settings, StillClock(), Wire(Reply()))

        assert built().probe(key, Probe.USERS).answer is Answer.ACCEPTED
        assert built(scim=ScimSettings(sandbox.scim_url)).probe(key, Probe.USERS).answer is Answer.ACCEPTED
        with pytest.raises(errors.Misconfigured):
            built(namespace="stacks-1").probe(key, Probe.USERS)
        assert len(built().list_keys()) == 1


# --- by hand ------------------------------------------------------------------------------------------------------------


def test_a_person_mints_and_revokes_and_the_rotator_says_where() -> None:
    target = manual_target(
        ManualSettings("zia", SCIM, live_keys=LiveKeys.ONE, min_settle=30), StillClock(), Wire(Reply())
    )
    c = target.capabilities
    assert (c.mint, c.lists, c.labels, c.revoke, c.live_keys, c.min_settle) == (
        By.PERSON,
        False,
        False,
        False,
        LiveKeys.ONE,
        30,
    )
    with pytest.raises(errors.Unsupported, match="hand-off path"):
        target.mint("rk-1")
    with pytest.raises(errors.Unsupported, match="admin console"):
        target.list_keys()
    with pytest.raises(errors.Unsupported, match="the rotator notices"):
        target.revoke("k1")


def test_a_bad_url_is_found_when_the_target_is_built() -> None:
    with pytest.raises(errors.Misconfigured):
        manual_target(ManualSettings("m", ScimSettings("ftp://x.example")), StillClock(), Wire(Reply()))
    with pytest.raises(errors.Misconfigured):
        grafana_target(
            GrafanaSettings("g", "https://x.example", "1", Secret("t"), ca_file="/nonexistent.pem"),
            StillClock(),
            Wire(Reply()),
        )


def test_settings_show_no_secret() -> None:
    settings = GrafanaSettings("g", "https://x.example", "1", Secret("canary-secret"))
    header = AdminHeader("Authorization", Secret("canary-secret"), "Bearer ")
    assert "canary-secret" not in f"{settings!r} {header!r}"
