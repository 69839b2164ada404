"""The commands. Each checks its words and hands over; what is heavy is imported when a command needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rotator import __version__
from rotator.cli_session import Exit, Settings

app = typer.Typer(
    name="rotator",
    help="Keeps provisioning keys young: mints, proves, pushes, confirms and retires the keys that identity providers"
    " provision with.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help needs no rich, and comes in half the time
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The configuration file.", envvar="ROTATOR_CONFIG", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine output on stdout; logs on stderr.")]
DEFAULT = Path("/etc/rotator/rotator.toml")
Name = Annotated[str, typer.Argument(help="The connection's name.", show_default=False)]
MaybeName = Annotated[str | None, typer.Argument(help="Only this connection.", show_default=False)]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Answer once it is written; a running daemon goes on.")]


@app.command()
def run(config: ConfigOption = DEFAULT, *, json: JsonOption = False) -> None:
    """Run the service until SIGTERM. SIGHUP reloads the configuration, SIGUSR1 rotates now."""
    from rotator.cli_run import run_daemon

    raise typer.Exit(run_daemon(Settings(config, json)))


@app.command()
def rotate(
    names: Annotated[list[str] | None, typer.Argument(help="Connections to rotate now.", show_default=False)] = None,
    *,
    all_: Annotated[bool, typer.Option("--all", help="All configured connections.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the state record and the ledger.")] = "",
    no_wait: NoWait = False,
    config: ConfigOption = DEFAULT,
    json: JsonOption = False,
) -> None:
    """Rotate connections now and follow each to its end."""
    from rotator.cli_operate import rotate_now

    if bool(names) == all_:
        print("name the connections, or say --all", file=sys.stderr)
        raise typer.Exit(Exit.USAGE)
    raise typer.Exit(rotate_now(Settings(config, json), names, note=reason, wait=not no_wait))


@app.command()
def plan(name: Name, config: ConfigOption = DEFAULT, *, json: JsonOption = False) -> None:
    """Show the exact calls in order and, for each, what is true if the process dies there. Changes nothing."""
    from rotator.cli_show import show_plan

    raise typer.Exit(show_plan(Settings(config, json), name))


@app.command()
def status(name: MaybeName = None, config: ConfigOption = DEFAULT, *, json: JsonOption = False) -> None:
    """Show connections: state, age of the key, what is due, what is held and why."""
    from rotator.cli_show import show_status

    raise typer.Exit(show_status(Settings(config, json), name))


@app.command()
def verify(name: Name, config: ConfigOption = DEFAULT, *, json: JsonOption = False) -> None:
    """Prove the current key on both sides; change nothing."""
    from rotator.cli_show import show_verify

    raise typer.Exit(show_verify(Settings(config, json), name))


@app.command()
def adopt(
    name: Name,
    *,
    key_id: Annotated[
        str | None,
        typer.Option("--key-id", help="The key's id at the target: makes it ours, so that it can be revoked later."),
    ] = None,
    from_stdin: Annotated[
        bool, typer.Option("--stdin", help="Read the key from stdin instead of Vault's current version.")
    ] = False,
    config: ConfigOption = DEFAULT,
    json: JsonOption = False,
) -> None:
    """Take over the key that is in use, without rotating it. Also ends `stuck` and drift."""
    from rotator.cli_keys import adopt_key

    raise typer.Exit(adopt_key(Settings(config, json), name, key_id=key_id, from_stdin=from_stdin))


@app.command()
def rollback(name: Name, config: ConfigOption = DEFAULT, *, no_wait: NoWait = False, json: JsonOption = False) -> None:
    """Undo the open rotation: the previous key goes back, the candidate is discarded."""
    from rotator.cli_operate import ask_and_follow

    raise typer.Exit(ask_and_follow(Settings(config, json), name, "rollback", wait=not no_wait))


@app.command()
def resume(name: Name, config: ConfigOption = DEFAULT, *, no_wait: NoWait = False, json: JsonOption = False) -> None:
    """Go on with a stuck or held rotation, once its cause is mended."""
    from rotator.cli_operate import ask_and_follow

    raise typer.Exit(ask_and_follow(Settings(config, json), name, "resume", wait=not no_wait))


@app.command()
def cancel(name: Name, config: ConfigOption = DEFAULT, *, no_wait: NoWait = False, json: JsonOption = False) -> None:
    """End an open rotation that has not pushed yet."""
    from rotator.cli_operate import ask_and_follow

    raise typer.Exit(ask_and_follow(Settings(config, json), name, "cancel", wait=not no_wait))


@app.command()
def stage(
    name: Name,
    *,
    vault_token_file: Annotated[
        Path | None, typer.Option("--vault-token-file", help="File with your own Vault token; else you are asked.")
    ] = None,
    key_id: Annotated[
        str | None, typer.Option("--key-id", help="The key's id at the target, where it has one.")
    ] = None,
    config: ConfigOption = DEFAULT,
    json: JsonOption = False,
) -> None:
    """Leave a key that you minted in the hand-off path, from stdin or a prompt, with your own Vault token."""
    from rotator.cli_keys import stage_key

    raise typer.Exit(stage_key(Settings(config, json), name, vault_token_file=vault_token_file, key_id=key_id))


@app.command()
def confirm(name: Name, config: ConfigOption = DEFAULT, *, no_wait: NoWait = False, json: JsonOption = False) -> None:
    """Say that you typed the key into the identity provider; kept as evidence asserted by a person."""
    from rotator.cli_operate import ask_and_follow

    raise typer.Exit(ask_and_follow(Settings(config, json), name, "confirm", wait=not no_wait))


@app.command()
def history(
    name: MaybeName = None,
    *,
    ledger: Annotated[
        list[Path] | None, typer.Option("--ledger", help="Ledger files to merge; else the configured one.")
    ] = None,
    config: ConfigOption = DEFAULT,
    json: JsonOption = False,
) -> None:
    """Show the ledger and verify its chain, against the state records too where Vault answers."""
    from rotator.cli_show import show_history

    raise typer.Exit(show_history(Settings(config, json), name, ledger or []))


@app.command("check-config")
def check_config(config: ConfigOption = DEFAULT, *, json: JsonOption = False) -> None:
    """Check the configuration; name every mistake with file, line and key."""
    from rotator.cli_show import show_config_check

    raise typer.Exit(show_config_check(Settings(config, json)))


@app.command()
def demo(
    *,
    json: JsonOption = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave all servers running and print their URLs.")] = False,
) -> None:
    """Rotate real keys on real servers on this machine: success, refusals, rollbacks, an outage and a crash."""
    try:
        from rotator.sandbox.demo import main as run_demo
    except ImportError as error:
        if (error.name or "").startswith("rotator."):
            print(
                "the demo's sandbox is not part of this installation; container images leave it out. Run the demo from a"
                " checkout or from the package: pip install 'rotator[demo]'",
                file=sys.stderr,
            )
            raise typer.Exit(Exit.USAGE) from None
        print(f"the demo needs its extra packages ({error.name}): pip install 'rotator[demo]'", file=sys.stderr)
        raise typer.Exit(Exit.USAGE) from None
    raise typer.Exit(run_demo(json_output=json, keep=keep))


def _version(value: bool) -> None:
    if value:
        print(f"rotator {__version__}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """The entry point of the `rotator` script."""
    app()


if __name__ == "__main__":
    main()
