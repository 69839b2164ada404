"""deploy/vault/rotator-policy.hcl is enough for all of a rotation's Vault work, and not one capability more than that."""

from __future__ import annotations

import re
from pathlib import Path

import hvac.exceptions
import pytest

from rotator.adapters.vault_keys import VaultKeyStore
from rotator.adapters.vault_state import VaultStateStore
from rotator.core.model import Record
from rotator.core.secret import Secret
from rotator.errors import Denied, Misconfigured, PortError
from rotator.ports import Heartbeat, Slot, StoredKey
from tests.adapters.vault_helpers import Calls, client
from tests.fakes.clock import FakeClock
from tests.openbao import OpenBao

_POLICY = Path(__file__).parents[2] / "deploy" / "vault" / "rotator-policy.hcl"
_RULE = re.compile(r'path "([^"]+)" \{\s*capabilities = \[([^]]*)\]\s*\}')

Rules = tuple[tuple[str, tuple[str, ...]], ...]


def _rules() -> Rules:
    text = _POLICY.read_text()
    return tuple((path, tuple(re.findall(r'"(\w+)"', listed))) for path, listed in _RULE.findall(text))


def _without(rules: Rules, path: str, capability: str) -> Rules:
    return tuple(
        (where, tuple(word for word in words if (where, word) != (path, capability))) for where, words in rules
    )


def _hcl(rules: Rules, mount: str) -> str:
    def stanza(path: str, words: tuple[str, ...]) -> str:
        listed = ", ".join(f'"{word}"' for word in words)
        return f'path "{re.sub("^secret/", f"{mount}/", path)}" {{ capabilities = [{listed}] }}'

    return "\n".join(stanza(path, words) for path, words in rules if words)


def _whole_rotation(bao: OpenBao, rules: Rules) -> None:
    """Everything that the rotator does in Vault, from its start to the end of a rotation with a person's hand-off."""
    mount = bao.mount()
    root = bao.client()
    clock, calls = FakeClock(), Calls()
    vault = client(bao.address, bao.token(_hcl(rules, mount), ttl="1h"), clock=clock, meter=calls)
    keys, state = VaultKeyStore(vault, mount, "rotator"), VaultStateStore(vault, mount, "rotator")

    state.beat(Heartbeat("i-1", 1, 15.0))
    state.beat(Heartbeat("i-1", 2, 15.0, version=1))
    assert len(state.beats()) == 1
    assert vault.token_expires_at is not None, "the token's end is not known"

    state.save(Record("graf"), 0)
    state.save(Record("graf", epoch=1), 1)
    assert state.load("graf") == (Record("graf", epoch=1), 2)
    assert state.names() == ("graf",)
    with pytest.raises(hvac.exceptions.InvalidRequest, match="check-and-set parameter required"):
        root.secrets.kv.v2.create_or_update_secret("rotator/state/graf", {"x": 1}, mount_point=mount)

    keys.write("graf", Slot.CURRENT, StoredKey(Secret("old")), 0)
    keys.check("graf")
    assert keys.write("graf", Slot.STAGED, StoredKey(None), keys.newest("graf", Slot.STAGED)) == 1
    root.secrets.kv.v2.create_or_update_secret("rotator/handoff/graf", {"key": "new"}, mount_point=mount)
    handed = keys.read("graf", Slot.HANDOFF)
    assert handed is not None
    keys.write("graf", Slot.STAGED, handed, 1)
    keys.destroy("graf", Slot.HANDOFF, (keys.newest("graf", Slot.HANDOFF),))
    candidate = keys.read("graf", Slot.STAGED, 2)
    assert candidate is not None
    keys.write("graf", Slot.CURRENT, candidate, 1)
    assert keys.read("graf", Slot.CURRENT, 1) is not None
    keys.destroy("graf", Slot.STAGED, (1, 2))

    root.secrets.kv.v2.configure(mount_point=mount, delete_version_after="1h")
    with pytest.raises(Misconfigured, match="deletes versions by itself"):
        keys.check("graf")

    clock.advance(2500)
    vault.renew()
    assert ("renew", "ok") in calls.seen

    with pytest.raises(Denied, match="our token has deny there"):
        VaultKeyStore(vault, mount, "not-ours").read("graf", Slot.CURRENT)


def test_the_policy_file_is_read_whole() -> None:
    assert len(_rules()) == _POLICY.read_text().count('\npath "')
    assert all(words for _, words in _rules())


def test_the_policy_is_enough_for_a_whole_rotation(openbao: OpenBao) -> None:
    _whole_rotation(openbao, _rules())


@pytest.mark.parametrize(
    ("path", "capability"),
    [pytest.param(path, word, id=f"without {word} on {path}") for path, words in _rules() for word in words],
)
def test_one_capability_less_is_not_enough(openbao: OpenBao, path: str, capability: str) -> None:
    with pytest.raises((PortError, AssertionError, pytest.fail.Exception)):
        _whole_rotation(openbao, _without(_rules(), path, capability))
