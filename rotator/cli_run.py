"""`rotator run`: from a configuration to a running daemon, and its reload."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from rotator import __version__, config
from rotator import app as composition
from rotator.adapters import vault
from rotator.adapters.idp import okta
from rotator.adapters.targets import KINDS
from rotator.app import App, Observers
from rotator.cli_session import Exit, Settings, load_config
from rotator.core.brake import Scope
from rotator.observe import logs
from rotator.observe.logs import LogObserver
from rotator.observe.metrics import Metrics
from rotator.ports import RotationEvent
from rotator.runtime.api import build_api
from rotator.runtime.api_guard import Tokens
from rotator.runtime.api_server import Served, ServeError, TlsFiles, serve
from rotator.runtime.clock import SystemClock
from rotator.runtime.daemon import HANDLED, Daemon
from rotator.runtime.service import Service

SEEDED_TARGETS = 50  # measured: a target's counters are 80 series, which cost 2 ms per scrape and 55 kB


class Late:
    """The metrics need the dispatcher's view and the dispatcher needs an observer: this one is told of the other later."""

    def __init__(self) -> None:
        self.metrics: Metrics | None = None

    def on(self, event: RotationEvent) -> None:
        if self.metrics is not None:
            self.metrics.on(event)

    def call(self, system: str, operation: str, result: str, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.call(system, operation, result, seconds)

    def rate_limit(self, idp: str, bucket: str, remaining: float) -> None:
        if self.metrics is not None:
            self.metrics.rate_limit(idp, bucket, remaining)


def run_daemon(settings: Settings) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # a signal that comes early waits for the main loop
    conf = load_config(settings)
    console = {"auto": None, "json": False, "console": True}[conf.rotator.log_format]
    logs.configure(level=conf.rotator.log_level, console=console)
    log = logs.logger("rotator")
    late, clock = Late(), SystemClock()
    app = composition.build(conf, meter=late, observer=Observers(LogObserver(), late), clock=clock)
    metrics = Metrics(
        snapshot=app.dispatcher.views,
        now=clock.now,
        version=__version__,
        per_connection_limit=_series_limit(conf),
    )
    metrics.configured(targets=conf.targets, idps=conf.idps, operations=_operations(conf))
    late.metrics = metrics
    app.dispatcher.configure(app.managed())
    try:
        tokens = Tokens(conf.api.tokens) if conf.api.enabled and conf.api.tokens else None
    except (OSError, ValueError) as error:
        print(f"{settings.config}: api.tokens: {error}", file=sys.stderr)
        return Exit.USAGE
    served: list[Served] = []

    def start_api() -> tuple[Callable[[], bool], Callable[[], None]]:
        service = Service(
            app.dispatcher,
            clock,
            tick=conf.rotator.tick,
            lease_left=app.membership.left,
            threads=app.dispatcher.alive,
            render=metrics.render,
        )
        api = build_api(
            service,
            tokens,
            now=clock.now,
            version=__version__,
            open_metrics=conf.metrics.open,
        )
        table = conf.api
        tls = TlsFiles(table.tls_cert, table.tls_key, table.tls_client_ca) if table.tls_cert and table.tls_key else None
        one = serve(
            api,
            conf.api.listen.host,
            conf.api.listen.port,
            tls,
            allow_public=conf.api.allow_public_without_tls,
        )
        served.append(one)
        log.info("serving", url=one.url)
        return one.alive, one.stop

    def reload() -> None:
        _reload(app, settings, metrics, tokens, served)

    def after_tick() -> None:
        metrics.tick(clock.now())
        metrics.vault_token_expiry(app.vault.token_expires_at)
        for (scope, name), on in app.dispatcher.all_brakes().items():
            metrics.brake("idp" if scope is Scope.IDP else "target", name, engaged=on)

    def set_clock_ok(ok: bool) -> None:
        app.engine.clock_ok = ok

    daemon = Daemon(
        clock=clock,
        dispatcher=app.dispatcher,
        membership=app.membership,
        open_names=app.dispatcher.open_names,
        renew_token=app.vault.renew,
        skew=app.state.skew,
        set_clock_ok=set_clock_ok,
        after_tick=after_tick,
        reload=reload,
        usr1=lambda: app.dispatcher.names() if app.config.signals.usr1 == ("*",) else app.config.signals.usr1,
        tick=conf.rotator.tick,
        lease=conf.rotator.lease,
        log=log,
        serve=start_api if conf.api.enabled else None,
        ready=lambda: log.info("ready", instance=app.instance, connections=len(conf.connections), version=__version__),
    )
    try:
        return daemon.run()
    except ServeError as error:
        print(f"{settings.config}: api: {error}", file=sys.stderr)
        return Exit.USAGE


def _series_limit(conf: config.Config) -> int:
    return {"auto": 1000, "always": sys.maxsize, "never": -1}[conf.metrics.per_connection]


def _operations(conf: config.Config) -> dict[str, tuple[str, ...]]:
    """The calls that can be counted, by system. With many targets theirs are left out: each is seeded by its first."""
    targets = conf.targets if len(conf.targets) <= SEEDED_TARGETS else {}
    return {
        "vault": vault.OPERATIONS,
        **{f"okta:{name}": okta.OPERATIONS for name in conf.idps},
        **{f"target:{name}": KINDS[table.kind].operations for name, table in targets.items()},
    }


def _reload(app: App, settings: Settings, metrics: Metrics, tokens: Tokens | None, served: list[Served]) -> None:
    """Take a new configuration and new tokens; keep the old ones when the new are bad."""
    log = logs.logger("rotator")
    try:
        new = config.load(settings.config, checks=(composition.check,))
        if tokens is not None:
            tokens.reload()
        for one in served:
            one.reload_tls()
    except config.ConfigError as error:
        metrics.config_reload(success=False)
        for problem in error.problems:
            log.error("reload_refused", problem=str(problem), text="the old stays in force")  # noqa: TRY400 - as below
        return
    except (OSError, ValueError) as error:
        metrics.config_reload(success=False)
        log.error("reload_refused", problem=str(error), text="the old stays in force")  # noqa: TRY400 - said, not a bug
        return
    fixed = [part for part in ("rotator", "vault", "api", "metrics") if getattr(new, part) != getattr(app.config, part)]
    app.reconfigure(new)
    kept = app.dispatcher.configure(app.managed())
    metrics.configured(targets=new.targets, idps=new.idps, operations=_operations(new))
    metrics.config_reload(success=True)
    for name in kept:
        log.error(
            "reload_refused", connection=name, text="its rotation is open: this connection keeps its old configuration"
        )
    if fixed:
        log.warning("restart_needed", sections=fixed, text="changes in these sections take effect at the next start")
    log.info("reloaded", connections=len(new.connections))
