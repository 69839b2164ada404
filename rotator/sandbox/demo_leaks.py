"""Nothing leaked: every credential of the demo is looked for in everything that left the program.

Keys are found in two ways: those that were seen in use are looked for literally and encoded; and every word long enough
is shown to the targets, which know the digest of each key they ever issued, also of those nobody saw.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from rotator.sandbox.demo_stage import Stage
from rotator.sandbox.lab import MOUNT, PREFIX, Lab

WORD = re.compile(r"[A-Za-z0-9_.~+/=-]{20,}")
VAULT_TOKEN = re.compile(r"\b(?:hvs|hvb|[sb])\.[A-Za-z0-9_-]{20,}")


def nothing_leaked(stage: Stage) -> None:
    lab = stage.lab
    lab.api("GET", "/v1/connections")
    for name in lab.benches:
        lab.api("GET", f"/v1/connections/{name}")
    lab.cli("status")
    lab.cli("history")
    known = credentials(stage)
    places = {
        "logs": lab.logs(),
        "ledger": lab.ledger.read_text(),
        "state records": "".join(_all_versions(lab, "state")),
        "heartbeats": "".join(_all_versions(lab, "instances")),
        "/metrics": lab.api("GET", "/metrics").text,
        "HTTP and CLI answers": "\n".join(lab.answers),
        "process arguments": "".join(_arguments(lab)),
    }
    key = lab.stored("keys", "steady")["key"]
    issued, encoded = found(json.dumps({"message": key}), set(), lab), found(key.encode().hex(), known, lab)
    facts = {
        f"{place}: none in {len(text):,} characters": bool(text) and not found(text, known, lab)
        for place, text in places.items()
    }
    facts["the search finds a key where there is one"] = bool(issued and encoded)
    stage.claim(
        "no credential left the program", facts, f"{len(known)} known credentials, and every issued key's digest"
    )


def credentials(stage: Stage) -> set[str]:
    lab = stage.lab
    own = {value.removeprefix("operate ") for value in lab.secrets.values()}
    return own | stage.keys | {bench.first_key for bench in lab.benches.values()} | {lab.vault.root_token}


def found(text: str, known: set[str], lab: Lab) -> set[str]:
    """The forms of credentials that stand in the text."""
    forms = {form for value in known for form in _forms(value)}
    there = {form for form in forms if form in text} | set(VAULT_TOKEN.findall(text))
    words = set(WORD.findall(text))
    words |= {part for word in words for part in re.split(r"[./=+~]", word)}
    return there | {word for word in words for target in lab.targets.values() if target.keys.find(word) is not None}


def _forms(value: str) -> Iterator[str]:
    raw = value.encode()
    yield from (value, quote(value, safe=""), raw.hex(), base64.b64encode(raw).decode().rstrip("="))


def _all_versions(lab: Lab, folder: str) -> Iterator[str]:
    kv = lab.kv()
    for name in kv.list_secrets(f"{PREFIX}/{folder}", mount_point=MOUNT)["data"]["keys"]:
        path = f"{PREFIX}/{folder}/{name}"
        for version in kv.read_secret_metadata(path, mount_point=MOUNT)["data"]["versions"]:
            read = kv.read_secret_version(path, version=int(version), mount_point=MOUNT, raise_on_deleted_version=False)
            yield json.dumps(read["data"]["data"])


def _arguments(lab: Lab) -> Iterator[str]:
    """What every user of the machine sees of the daemons."""
    for process in lab.processes:
        yield " ".join(str(word) for word in process.args) if isinstance(process.args, list) else str(process.args)
        shown = Path(f"/proc/{process.pid}/cmdline")
        if shown.exists():
            yield shown.read_text().replace("\0", " ")
