"""What only the whole program can see in a configuration is said with file and line too, and nothing is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from rotator import app, config

BASE = """\
[vault]
address = "https://vault.example.com"
auth = { method = "token", token = "env:T" }
[idp.acme]
kind = "okta"
url = "https://acme.okta.com"
auth = { method = "ssws", token = "env:T" }
[target.t]
kind = "http"
url = "https://t.example.com"
scim_url = "https://t.example.com/scim"
auth = [{ value = "env:T" }]
MINT
[[connection]]
name = "c"
idp = "acme"
app_id = "0oa1"
app = "custom"
target = "t"
rotate_every = "30d"
MORE
"""
LIST = 'list = { path = "/keys", key_id = "/id", label = "/name" }\n'
GOOD = 'mint = { path = "/keys", body = { name = "{label}" }, key = "/key", key_id = "/id" }\n'

CASES = [
    pytest.param(GOOD + LIST + 'revoke = { path = "/keys" }', "", "target.t", id="a revoke that names no key"),
    pytest.param(
        GOOD + 'revoke = { path = "/keys/{key_id}" }', "", "can't list", id="no list: a lost key is never found"
    ),
    pytest.param(GOOD + LIST, "", "can't revoke", id="no revoke: a bad candidate is never ended"),
    pytest.param(
        'live_keys = "one"\n' + GOOD.replace("name", "value"),
        "",
        "allow_gap",
        id="one live key without accepting the gap",
    ),
    pytest.param(
        GOOD + LIST + 'revoke = { path = "/keys/{key_id}" }',
        'window = { start = "22:00", duration = "1h" }',
        "",
        id="nothing wrong",
    ),
]


@pytest.mark.parametrize(("target", "more", "said"), CASES)
def test_the_checks_of_the_whole_program(tmp_path: Path, target: str, more: str, said: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(BASE.replace("MINT", target).replace("MORE", more))

    try:
        config.load(path, checks=(app.check,))
        problems = []
    except config.ConfigError as error:
        problems = [str(p) for p in error.problems]

    if said:
        assert [p for p in problems if said in p], problems
        assert all(p.startswith(f"{path}:") for p in problems)
    else:
        assert problems == []


def test_a_cron_that_programs_disagree_on_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    good = GOOD + LIST + 'revoke = { path = "/keys/{key_id}" }'
    path.write_text(
        BASE.replace("MINT", good).replace('rotate_every = "30d"', 'cron = "0 3 1 * 1"').replace("MORE", "")
    )

    with pytest.raises(config.ConfigError, match="not both"):
        config.load(path, checks=(app.check,))
