"""A configuration is either understood whole, or refused with every problem named by file, line and key path."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from datetime import time as clock_time
from pathlib import Path

import pytest

from rotator.config import Config, ConfigError, Finding, SecretRef, load, resolve_local
from rotator.config_lines import Lines
from rotator.config_values import parse_duration
from rotator.core.model import By, Limits
from rotator.core.schedule import Freeze, Schedule, Window
from rotator.errors import Misconfigured

CANARY = "canary-7c1f-NEVER-SHOWN"

VAULT = """\
[vault]
address = "https://vault.example:8200"
auth = { method = "token", token = "env:T" }
"""
SIDES = """\
[idp.acme]
kind = "okta"
url = "https://acme.okta.com"
auth = { method = "ssws", token = "env:T" }
[target.zs]
kind = "manual"
[target.one]
kind = "manual"
live_keys = "one"
scim_url = "https://scim.example/one"
[target.web]
kind = "http"
url = "https://web.example/api"
scim_url = "https://web.example/scim"
auth = [{ value = "env:T" }]
ttl = "90d"
[target.web.mint]
path = "/keys"
key = "/key"
"""
DEFAULTS = """\
[defaults]
rotate_every = "30d"
"""


def connection(name: str = "a", **more: str) -> str:
    """A [[connection]] whose values are given as TOML; "" leaves a key out."""
    keys = {
        "name": f'"{name}"',
        "idp": '"acme"',
        "app_id": f'"0oa{name}"',
        "app": '"zscalerbyz"',
        "target": '"zs"',
        "base_url": f'"https://scim.example/{name}"',
    } | more
    return "[[connection]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items() if value)


GOOD = VAULT + SIDES + DEFAULTS + connection()


Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "config.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems(path: Path) -> list[str]:
    """Each problem as "LINE key: sentence"; fails when there is none."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    prefix = f"{path}:"
    assert all(str(problem).startswith(prefix) for problem in caught.value.problems)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return [str(problem).removeprefix(prefix) for problem in caught.value.problems]


def line_of(text: str, part: str) -> int:
    """The last line of the text that holds the part."""
    return max(number for number, line in enumerate(text.splitlines(), 1) if part in line)


# --- one thing wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "at", "key", "sentence"),
    [
        pytest.param(
            GOOD.replace("[vault]", '[vault]\nmonut = "kv"'), "monut", "vault.monut", 'Did you mean "mount"', id="typo"
        ),
        pytest.param(GOOD + "[signal]\n", "[signal]", "signal", 'Did you mean "signals"', id="unknown table"),
        pytest.param(
            GOOD.replace('kind = "okta"', 'kind = "okta"\nmax_paralel = 3'),
            "max_paralel",
            "idp.acme.max_paralel",
            'Did you mean "max_parallel"',
            id="typo below a name of the user's choice",
        ),
        pytest.param(
            GOOD + 'key = { haeder = "{key}" }\n',
            "haeder",
            "connection[0].key.haeder",
            'Did you mean "header"',
            id="typo in an inline table",
        ),
        pytest.param(
            GOOD.replace('kind = "manual"\n[target.one]', 'kind = "manual"\nttl = "1d"\n[target.one]'),
            'ttl = "1d"',
            "target.zs.ttl",
            "is unknown",
            id="a key of another kind of target",
        ),
        pytest.param(GOOD + "overlap = 5\n", "overlap", "connection[0].overlap", "duration with a unit", id="no unit"),
        pytest.param(
            GOOD + 'overlap = "5 s"\n', "overlap", "connection[0].overlap", "duration", id="blank in a duration"
        ),
        pytest.param(
            GOOD.replace('"30d"', '"0s"'),
            "rotate_every",
            "defaults.rotate_every",
            "longer than zero",
            id="zero interval",
        ),
        pytest.param(GOOD + "enabled = 1\n", "enabled", "connection[0].enabled", "true or false", id="1 is not true"),
        pytest.param(
            GOOD + '[rotator]\nworkers = "8"\n', "workers", "rotator.workers", "whole number", id='"8" is not 8'
        ),
        pytest.param(GOOD + "[rotator]\nworkers = 0\n", "workers", "rotator.workers", "1 or more", id="no workers"),
        pytest.param(
            "rotator = 3\n" + GOOD, "rotator = 3", "rotator", "must be a table", id="value where a table belongs"
        ),
        pytest.param(
            GOOD.replace("[[connection]]", "[connection]"),
            "[connection]",
            "connection",
            "[[connection]]",
            id="single brackets",
        ),
        pytest.param(
            GOOD.replace("address =", "# address ="), "[vault]", "vault.address", "required", id="missing key"
        ),
        pytest.param(GOOD.replace(VAULT, ""), "[idp.acme]", "vault", "required", id="missing table"),
        pytest.param(
            GOOD.replace('"ssws"', '"oauth"'),
            "oauth",
            "idp.acme.auth.method",
            "'ssws', 'private_key_jwt'",
            id="unknown method",
        ),
        pytest.param(GOOD.replace('kind = "okta"\n', ""), "[idp.acme]", "idp.acme.kind", "required", id="no kind"),
        pytest.param(
            GOOD.replace("https://vault", "http://vault"), "address", "vault.address", "must be https", id="plain http"
        ),
        pytest.param(
            GOOD.replace("acme.okta", "acme-admin.okta"),
            "acme-admin",
            "idp.acme.url",
            "without -admin",
            id="admin console",
        ),
        pytest.param(
            GOOD.replace("okta.com", "okta.com/api/v1"),
            "api/v1",
            "idp.acme.url",
            "without a path",
            id="path in org URL",
        ),
        pytest.param(GOOD + 'cron = "* * * *"\n', "cron", "connection[0].cron", "five fields", id="four cron fields"),
        pytest.param(
            GOOD + 'window = { start = "24:00", duration = "1h" }\n',
            "window",
            "connection[0].window.start",
            "time of day",
            id="24:00",
        ),
        pytest.param(
            GOOD + 'window = { start = "22:00", duration = "1h", timezone = "Berlin" }\n',
            "window",
            "connection[0].window.timezone",
            "IANA",
            id="unknown time zone",
        ),
        pytest.param(
            GOOD.replace('name = "a"', 'name = "../a"'),
            "../a",
            "connection[0].name",
            "not allowed",
            id="name climbs out",
        ),
        pytest.param(
            GOOD + 'key.header = "Bearer"\n',
            "key.header",
            "connection[0].key.header",
            "{key} once",
            id="header without key",
        ),
        pytest.param(
            GOOD.replace('path = "/keys"', 'path = "/keys?all=1"'),
            "?all",
            "target.web.mint.path",
            "no query",
            id="query in path",
        ),
        pytest.param(
            GOOD.replace('key = "/key"', 'key = "key"'),
            'key = "key"',
            "target.web.mint.key",
            "JSON pointer",
            id="no pointer",
        ),
        pytest.param(
            GOOD.replace('key = "/key"', 'key = "/key"\nbody = { at = 2026-01-01 }'),
            "body",
            "target.web.mint.body",
            "must be JSON",
            id="a date is no JSON",
        ),
        # contradictions
        pytest.param(
            GOOD + '[rotator]\nlease = "30s"\n',
            "[rotator]",
            "rotator.call_deadline",
            "shorter than lease",
            id="call outlives lease",
        ),
        pytest.param(
            GOOD + 'rotate_every = "7d"\ncron = "0 3 * * *"\n',
            "cron",
            "connection[0].cron",
            "exclude each other",
            id="two schedules",
        ),
        pytest.param(
            GOOD.replace(DEFAULTS, ""), "[[connection]]", "connection[0]", "no schedule", id="no schedule at all"
        ),
        pytest.param(
            GOOD + 'timezone = "Europe/Berlin"\n',
            "timezone",
            "connection[0].timezone",
            "belongs to cron",
            id="zone without cron",
        ),
        pytest.param(
            GOOD + 'overlap = "40d"\n',
            "overlap",
            "connection[0].overlap",
            "shorter than rotate_every",
            id="overlap too long",
        ),
        pytest.param(
            GOOD + 'backoff = "1h"\n',
            "backoff",
            "connection[0].backoff",
            "not be above backoff_cap",
            id="backoff above its cap",
        ),
        pytest.param(
            VAULT + SIDES + DEFAULTS + connection(target='"web"', app='"x"', expiry_margin='"95d"'),
            "expiry_margin",
            "connection[0].expiry_margin",
            "due again at once",
            id="keys live shorter than the margin",
        ),
        pytest.param(
            GOOD + 'freeze = [{ from = 2026-12-24, until = 2026-12-01, reason = "x" }]\n',
            "freeze",
            "connection[0].freeze[0].until",
            "before it begins",
            id="freeze ends before it begins",
        ),
        pytest.param(
            GOOD + '[api]\ntls_cert = "/c"\n',
            "tls_cert",
            "api.tls_cert",
            "go together",
            id="certificate without its key",
        ),
        pytest.param(
            GOOD.replace("[vault]", '[vault]\nclient_key = "/k"'),
            "client_key",
            "vault.client_key",
            "go together",
            id="client key alone",
        ),
        pytest.param(
            GOOD
            + '[api]\nlisten = "10.0.0.1:80"\ntokens = "/t"\ntls_cert = "/c"\ntls_key = "/k"\n[metrics]\nopen = true\n',
            "open",
            "metrics.open",
            "reachable from outside",
            id="public metrics without tokens",
        ),
        pytest.param(
            GOOD + '[api]\ntls_client_ca = "/c"\n',
            "tls_client_ca",
            "api.tls_client_ca",
            "needs tls_cert",
            id="client certificates without TLS",
        ),
        pytest.param(
            GOOD + '[api]\nlisten = "0.0.0.0:80"\nallow_public_without_tls = true\n',
            "listen",
            "api.listen",
            "tokens must be set",
            id="public without tokens",
        ),
        pytest.param(
            GOOD + '[api]\nlisten = "[::]:80"\ntokens = "/t"\n',
            "listen",
            "api.listen",
            "without TLS",
            id="public without TLS",
        ),
        pytest.param(
            VAULT + SIDES + DEFAULTS + connection(app='"salesforce"', push='"api"'),
            "push",
            "connection[0].push",
            'set push = "person"',
            id="push by API where Okta has no call",
        ),
        pytest.param(
            VAULT + SIDES + DEFAULTS + connection(base_url=""),
            "[[connection]]",
            "connection[0].base_url",
            "where SCIM is served",
            id="no SCIM address",
        ),
        # names that refer to nothing, and two of one
        pytest.param(
            GOOD.replace('idp = "acme"', 'idp = "acne"'), "acne", "connection[0].idp", '"acme"', id="no such idp"
        ),
        pytest.param(
            GOOD.replace('"zs"', '"zz"'), '"zz"', "connection[0].target", "there is no [target.…]", id="no such target"
        ),
        pytest.param(
            GOOD + '[signals]\nusr1 = ["b"]\n',
            "usr1",
            "signals.usr1",
            'no connection "b"',
            id="signal for no connection",
        ),
        pytest.param(
            GOOD + connection(app_id='"0oab"'),
            'name = "a"',
            "connection[1].name",
            "taken by connection[0]",
            id="same name",
        ),
        pytest.param(
            GOOD + connection("b", app_id='"0oaa"'),
            "0oaa",
            "connection[1].app_id",
            "overwrite each other",
            id="same app",
        ),
        pytest.param(
            GOOD.replace('"zs"', '"one"') + connection("b", target='"one"', base_url='"https://scim.example/a"'),
            'target = "one"',
            "connection[1].target",
            "would revoke the other's",
            id="same tenant of a target with one live key",
        ),
        pytest.param(
            VAULT + SIDES + DEFAULTS + connection(target='"web"') + connection("b", target='"web"'),
            'target = "web"',
            "connection[1].target",
            "would revoke the other's",
            id="same target without labels",
        ),
    ],
)
def test_one_problem_is_named_with_line_key_and_sentence(
    write: Write, text: str, at: str, key: str, sentence: str
) -> None:
    (found,) = problems(write(text))
    assert found.startswith(f"{line_of(text, at)} {key}: ")
    assert sentence in found


# --- the file itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("[vault]\naddress = \n", "2: is no valid TOML at column 11: ", id="no value"),
        pytest.param('[vault]\naddress = "x', "2: is no valid TOML at its end: ", id="string never ends"),
        pytest.param("[vault]\n\n[vault]\n", "3: is no valid TOML at column 7: ", id="table twice"),
        pytest.param(b"[vault]\n# ok\nmount = '\xff'\n", "3: is not UTF-8 text", id="not UTF-8"),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_its_line(write: Write, text: str | bytes, found: str) -> None:
    (problem,) = problems(write(text))
    assert problem.startswith(found)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "absent.toml")
    assert str(caught.value) == f"{tmp_path / 'absent.toml'}: can't be read: No such file or directory"


def test_a_byte_order_mark_is_no_problem(write: Write) -> None:
    assert list(load(write(b"\xef\xbb\xbf" + GOOD.encode())).connections) == ["a"]


def test_all_problems_are_told_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = (
        VAULT.replace('"env:T"', "3")
        + SIDES.replace('"okta"', '"okra"')
        + DEFAULTS.replace("rotate_every", "rotate_evry")
        + connection(idp='"acne"', push='"api"', app='"x"')
        + connection("b", app_id="3", overlap='"1"')
        + connection("a", app_id='"0oac"')
        + "[[connection]]\n"
    )
    found = problems(write(text))
    keys = [problem.partition(" ")[2].partition(":")[0] for problem in found]
    assert keys == [
        "vault.auth.token",
        "idp.acme.kind",
        "defaults.rotate_evry",
        "connection[0].idp",
        "connection[0].push",
        "connection[1].app_id",
        "connection[1].overlap",
        "connection[2].name",
        "connection[3].name",
        "connection[3].idp",
        "connection[3].app_id",
        "connection[3].app",
        "connection[3].target",
    ]


def test_a_key_of_another_kind_of_table_is_not_suggested(write: Write) -> None:
    text = GOOD.replace("[target.one]", 'ttl = "1d"\n[target.one]')
    (found,) = problems(write(text))
    place, _, rest = found.partition(" is unknown.")
    assert place.endswith(" target.zs.ttl:")
    assert "live_keys" in rest
    assert "ttl" not in re.findall(r"\w+", rest)


def test_findings_of_later_checks_get_their_line(write: Write) -> None:
    path = write(GOOD)

    def unsafe(config: Config) -> list[Finding]:
        return [Finding((*config.connections["a"].at, "target"), "can't be rotated safely")]

    with pytest.raises(ConfigError) as caught:
        load(path, checks=[unsafe])
    assert str(caught.value) == (f"{path}:{line_of(GOOD, 'target = ')} connection[0].target: can't be rotated safely")


LINES = """\
a.b = 1

[x] # [not.this]
"quoted key" = [ # ]
  "]", '[',
]
text = '''
[no]
no = 1
'''
after = { k = "}", more = 2 }
[[item]]
one = 1
[item.sub]
two = \"\"\"
\\\"\"\" [no]
\"\"\"
[[item]]
[item.sub]
'two' = 2
[["dotted.item".'x']]
z.y.x = 1"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        pytest.param(("a", "b"), 1, id="dotted key"),
        pytest.param(("a", "absent"), 1, id="absent key below a dotted one"),
        pytest.param(("absent",), 1, id="absent key at the top"),
        pytest.param(("x",), 3, id="table header"),
        pytest.param(("x", "absent"), 3, id="absent key in a table"),
        pytest.param(("x", "quoted key", 1), 4, id="item of a list over several lines"),
        pytest.param(("x", "text"), 7, id="long string"),
        pytest.param(("x", "no"), 3, id="key inside a long string is none"),
        pytest.param(("x", "after", "more"), 11, id="key in an inline table"),
        pytest.param(("item", 0, "one"), 13, id="first item of an array of tables"),
        pytest.param(("item", 0, "sub", "two"), 15, id="table below the first item"),
        pytest.param(("item", 1), 18, id="second item"),
        pytest.param(("item", 1, "sub", "two"), 20, id="table below the second item"),
        pytest.param(("dotted.item", "x", 0, "z", "y", "x"), 22, id="quoted names with dots"),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["unix", "windows"])
def test_keys_are_found_on_their_line(path: tuple[str | int, ...], line: int, ends: str) -> None:
    assert Lines(LINES.replace("\n", ends)).of(path) == line


# --- secrets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(GOOD.replace('"env:T"', f'"{CANARY}"'), id="in a secret's place"),
        pytest.param(GOOD.replace('"env:T"', f'"vault:{CANARY}"'), id="as an incomplete reference"),
        pytest.param(GOOD.replace('"env:T"', f'["{CANARY}"]'), id="in a list in a secret's place"),
        pytest.param(GOOD.replace('"https://vault.example:8200"', f'"{CANARY}"'), id="as a URL"),
        pytest.param(GOOD.replace("https://acme.", f"https://user:{CANARY}@acme."), id="inside a URL"),
        pytest.param(GOOD.replace('"ssws"', f'"{CANARY}"'), id="as a method"),
        pytest.param(GOOD.replace('"okta"', f'"{CANARY}"'), id="as a kind"),
        pytest.param(GOOD.replace('"30d"', f'"{CANARY}"'), id="as a duration"),
        pytest.param(GOOD.replace('"0oaa"', f'"{CANARY} "'), id="as an app id"),
        pytest.param(GOOD + f'key = "{CANARY}"\n', id="in a table's place"),
        pytest.param(GOOD + f'key.header = "{CANARY}"\n', id="as a header form"),
        pytest.param(GOOD + f'push = "{CANARY}"\n', id="in a closed list"),
        pytest.param(GOOD + f'enabled = "{CANARY}"\n', id="as a switch"),
        pytest.param(GOOD.replace('"acme"', f'"{CANARY}"'), id="as a name that refers to nothing"),
        pytest.param(GOOD + f"broken = {CANARY}\n", id="where TOML ends to be valid"),
        pytest.param(
            "allow_plain_secrets = true\n" + GOOD.replace('"env:T"', f'"{CANARY}"') + "overlap = 1\n",
            id="allowed in plain text, beside another problem",
        ),
    ],
)
def test_no_value_is_ever_shown_in_an_error(write: Write, text: str) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert CANARY not in str(caught.value) + repr(caught.value) + repr(caught.value.problems)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_plain_secret_is_refused_with_the_way_out(write: Write) -> None:
    (_, _, found) = problems(write(GOOD.replace('"env:T"', f'"{CANARY}"')))
    assert "plain text" in found
    assert "file:/path" in found
    assert "allow_plain_secrets" in found


def test_an_allowed_plain_secret_is_held_masked(write: Write) -> None:
    config = load(write("allow_plain_secrets = true\n" + GOOD.replace('"env:T"', f'"{CANARY}"')))
    auth = config.idps["acme"].auth
    assert auth.method == "ssws"
    assert resolve_local(auth.token).reveal() == CANARY
    assert CANARY not in repr(config) + str(auth.token)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        pytest.param("env:OKTA_TOKEN", SecretRef("env", "OKTA_TOKEN"), id="variable"),
        pytest.param("file:/run/x", SecretRef("file", "/run/x"), id="absolute path"),
        pytest.param("vault:kv/a/b#f", SecretRef("vault", "kv/a/b", "f"), id="Vault"),
    ],
)
def test_references_are_read(write: Write, text: str, ref: SecretRef) -> None:
    auth = load(write(GOOD.replace('"ssws", token = "env:T"', f'"ssws", token = "{text}"'))).idps["acme"].auth
    assert auth.method == "ssws"
    assert auth.token == ref
    assert str(ref) == text


def test_a_vault_reference_names_mount_and_path() -> None:
    ref = SecretRef("vault", "kv/a/b", "f")
    assert (ref.mount, ref.path, ref.field) == ("kv", "a/b", "f")


def test_relative_files_are_taken_from_the_folder_of_the_configuration(write: Write, tmp_path: Path) -> None:
    config = load(write(GOOD.replace('"env:T"', '"file:secrets/t"').replace("[vault]", '[vault]\nca_file = "ca.pem"')))
    assert config.vault.auth.method == "token"
    assert config.vault.auth.token.where == str(tmp_path / "secrets/t")
    assert config.vault.ca_file == tmp_path / "ca.pem"


def test_vaults_own_sign_in_cannot_lie_in_vault(write: Write) -> None:
    (found,) = problems(write(GOOD.replace('"token", token = "env:T"', '"token", token = "vault:kv/a#b"', 1)))
    assert found.startswith("3 vault.auth.token: ")
    assert "can't lie in Vault" in found


@pytest.mark.parametrize(
    ("content", "value"),
    [
        pytest.param(b"key\n", "key", id="one newline is dropped"),
        pytest.param(b"key\r\n", "key", id="also of Windows"),
        pytest.param(b"key\n\n", "key\n", id="only one"),
        pytest.param(b" key ", " key ", id="blanks stay"),
        pytest.param(b"-----BEGIN\nX\n", "-----BEGIN\nX", id="inner newlines stay"),
    ],
)
def test_a_secret_file_is_read_as_it_is(tmp_path: Path, content: bytes, value: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    file.chmod(0o600)
    assert resolve_local(SecretRef("file", str(file))).reveal() == value


@pytest.mark.parametrize(
    ("content", "mode", "detail"),
    [
        pytest.param(CANARY.encode(), 0o644, "everybody on this machine may read", id="world-readable"),
        pytest.param(b"\n", 0o600, "empty", id="empty"),
        pytest.param(CANARY.encode() + b"\xff", 0o600, "not UTF-8", id="not text"),
        pytest.param(CANARY.encode() * 9000, 0o600, "larger than", id="too large"),
        pytest.param(None, 0o600, "No such file", id="absent"),
    ],
)
def test_a_secret_file_that_cannot_be_used_says_why(
    tmp_path: Path, content: bytes | None, mode: int, detail: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
        file.chmod(mode)
    with pytest.raises(Misconfigured) as caught:
        resolve_local(SecretRef("file", str(file)))
    assert detail in str(caught.value)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_world_readable_secret_can_be_allowed(tmp_path: Path, write: Write) -> None:
    file = tmp_path / "secret"
    file.write_text("key")
    file.chmod(0o644)
    config = load(write("allow_world_readable_secrets = true\n" + GOOD))
    ref = SecretRef("file", str(file))
    assert resolve_local(ref, allow_world_readable=config.allow_world_readable_secrets).reveal() == "key"


def test_a_variable_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROTATOR_TEST_SECRET", "one")
    assert resolve_local(SecretRef("env", "ROTATOR_TEST_SECRET")).reveal() == "one"
    monkeypatch.delenv("ROTATOR_TEST_SECRET")
    with pytest.raises(Misconfigured, match="unset or empty"):
        resolve_local(SecretRef("env", "ROTATOR_TEST_SECRET"))


def test_a_vault_reference_is_not_read_here() -> None:
    with pytest.raises(Misconfigured, match="without Vault"):
        resolve_local(SecretRef("vault", "kv/a", "b"))


# --- what comes out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("30d", 2592000.0, id="days"),
        pytest.param("2w", 1209600.0, id="weeks"),
        pytest.param("12h", 43200.0, id="hours"),
        pytest.param("5m", 300.0, id="minutes"),
        pytest.param("90s", 90.0, id="seconds"),
        pytest.param("0s", 0.0, id="none"),
        pytest.param("250ms", 0.25, id="milliseconds"),
        pytest.param("1.5h", 5400.0, id="a fraction"),
        pytest.param("1h30m", 5400.0, id="two units"),
    ],
)
def test_durations_become_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_connection_inherits_what_it_does_not_say(write: Write) -> None:
    timing = """
overlap = "2h"
settle = "5m"
expiry_margin = "1d"
window = { days = ["sun", "mon"], start = "22:00", duration = "6h", timezone = "Europe/Berlin" }
freeze = [{ from = 2026-12-24, until = 2026-12-27T12:00:00+01:00, reason = "holidays", timezone = "Europe/Berlin" }]
"""
    own = connection("b", overlap='"1s"', cron='"0 3 * * *"', timezone='"Asia/Tokyo"', freeze="[]", bootstrap="true")
    config = load(write(VAULT + SIDES + DEFAULTS + timing + connection() + own))
    a, b = config.connections.values()
    assert a.limits == Limits(overlap=7200.0, settle=300.0)
    assert b.limits == Limits(overlap=1.0, settle=300.0)
    window = Window((1, 7), clock_time(22), 21600.0, "Europe/Berlin")
    frozen = Freeze(datetime(2026, 12, 23, 23, tzinfo=UTC), datetime(2026, 12, 27, 11, tzinfo=UTC), "holidays")
    assert a.schedule == Schedule(rotate_every=2592000.0, expiry_margin=86400.0, window=window, freezes=(frozen,))
    assert a.schedule.freezes[0].start.tzinfo is UTC
    assert b.schedule == Schedule(
        cron="0 3 * * *", timezone="Asia/Tokyo", expiry_margin=86400.0, window=window, bootstrap=True
    )


def test_defaults_are_those_of_the_model(write: Write) -> None:
    config = load(write(GOOD))
    assert config.connections["a"].limits == Limits()


def test_every_limit_can_be_set(write: Write) -> None:
    """A limit that no key reaches would keep drills from running in seconds."""
    keys = {
        "settle": '"1s"', "successes": "1", "success_window": '"1s"', "overlap": '"1s"', "watch_every": '"1s"',
        "outage": '"1s"', "restore_deadline": '"1s"', "discard_deadline": '"1s"', "retire_deadline": '"1s"',
        "pushes": "1", "mints": "1", "person_deadline": '"1s"', "remind_every": '"1s"', "backoff": '"1s"',
        "backoff_cap": '"1s"', "enable_disabled": "true", "write_probe": "true",
    }  # fmt: skip
    limits = load(write(VAULT + SIDES + DEFAULTS + connection(**keys))).connections["a"].limits
    assert {getattr(limits, name) for name in Limits.__slots__} == {1.0}  # True and 1 equal 1.0


@pytest.mark.parametrize(
    ("more", "push"),
    [
        pytest.param({"app": '"zscalerbyz"'}, By.API, id="an app that Okta's API covers"),
        pytest.param({"app": '"okta_org2org"'}, By.API, id="the other one"),
        pytest.param({"app": '"salesforce"'}, By.PERSON, id="any other app"),
        pytest.param({"app": '"zscalerbyz"', "push": '"person"'}, By.PERSON, id="asked for"),
    ],
)
def test_who_pushes_is_derived_from_the_app(write: Write, more: dict[str, str], push: By) -> None:
    assert load(write(VAULT + SIDES + DEFAULTS + connection(**more))).connections["a"].push is push


@pytest.mark.parametrize(
    ("more", "base_url", "header"),
    [
        pytest.param({}, "https://scim.example/a", "Bearer {key}", id="own address"),
        pytest.param(
            {"base_url": '"https://scim.example/a/"'}, "https://scim.example/a", "Bearer {key}", id="no slash"
        ),
        pytest.param(
            {"base_url": "", "target": '"web"'}, "https://web.example/scim", "Bearer {key}", id="the target's"
        ),
        pytest.param({"key": '{ header = "{key}" }'}, "https://scim.example/a", "{key}", id="own header"),
    ],
)
def test_address_and_header_come_from_the_connection_or_its_target(
    write: Write, more: dict[str, str], base_url: str, header: str
) -> None:
    found = load(write(VAULT + SIDES + DEFAULTS + connection(**more))).connections["a"]
    assert (found.base_url, found.header) == (base_url, header)


def test_connections_may_share_a_target_that_keeps_their_keys_apart(write: Write) -> None:
    listed = SIDES + '[target.web.list]\npath = "/keys"\nkey_id = "/id"\nlabel = "/name"\n'
    text = VAULT + listed + DEFAULTS + connection(target='"web"') + connection("b", target='"web"')
    assert list(load(write(text)).connections) == ["a", "b"]


def test_ten_thousand_connections_share_their_rules_and_load(write: Write) -> None:
    rows = [connection(f"c{n:05}", rotate_every='"7d"' if n % 3 else "") for n in range(10_000)]
    path = write(VAULT + SIDES + DEFAULTS + "".join(rows))
    began = time.perf_counter()
    config = load(path)
    print(f"10,000 connections loaded in {time.perf_counter() - began:.2f} s")
    assert len(config.connections) == 10_000
    assert len({id(c.rules) for c in config.connections.values()}) == 2
