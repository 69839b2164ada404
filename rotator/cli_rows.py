"""What the commands that change something answer: one row per connection, and the gravest exit code among them."""

from __future__ import annotations

import getpass
import os
from typing import Any

from rotator.cli_session import Exit, Settings, out
from rotator.core.model import Record


def row(
    name: str, code: Exit, *, rotation_id: str = "", record: Record | None = None, reason: str = "", text: str = ""
) -> dict[str, Any]:
    last = record.last if record is not None else None
    return {
        "connection": name,
        "rotation_id": rotation_id,
        "outcome": last.outcome.value if last is not None and last.id == rotation_id else "",
        "reason": reason or (last.reason.value if last is not None and last.id == rotation_id else ""),
        "message": text,
        "code": int(code),
    }


WORST = (Exit.UNEXPECTED, Exit.STUCK, Exit.ROLLED_BACK, Exit.REFUSED, Exit.WAITING, Exit.DONE)


def print_rows(settings: Settings, rows: list[dict[str, Any]]) -> int:
    """The results, and the gravest code among them."""
    if settings.json:
        out({"results": rows})
    else:
        for one in rows:
            word = one["outcome"] or one["reason"]
            print(f"{one['connection']}: {word + ': ' if word else ''}{one['message']}")
    codes = {one["code"] for one in rows}
    return next((int(code) for code in WORST if code in codes), int(Exit.DONE))


def who() -> str:
    """Who runs this command; a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
