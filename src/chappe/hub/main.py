"""The Hub's composition root: options, store, certificate, first start, server, loops, stop."""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from chappe.core.errors import ChappeError, Invalid, Unavailable
from chappe.hub import logs
from chappe.link.clock import boottime, now
from chappe.link.faults import arm_from_env

if TYPE_CHECKING:
    from chappe.hub import serve, tls
    from chappe.hub.mail import Configured
    from chappe.hub.retention import Retention
    from chappe.hub.state import Hub
    from chappe.store.db import Store

DEFAULT_PORT = 8461

log = structlog.get_logger("chappe.hub")


def default_data() -> Path:
    """Where a Hub keeps its files by default."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local/share") / "chappe"


def database(data: Path, db: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The URL of a Hub's database: the one given, that of CHAPPE_DB, or SQLite in its data directory.

    Raises Invalid for a password in `db`, which comes from a command line: all users of a machine see it.
    """
    if db and urlsplit(db).password is not None:
        raise Invalid(
            "a password on the command line is seen by all users of this machine: leave it out, and put it "
            "into ~/.pgpass, PGPASSWORD, or the URL into CHAPPE_DB",
            field="db",
        )
    return db or environ.get("CHAPPE_DB") or f"sqlite:///{data.absolute() / 'hub.sqlite'}"


@dataclass(frozen=True)
class HubOptions:
    """How to start a Hub. `db` None: SQLite in the data directory. Port 0: a free one, which is printed.

    `url_host` is the name that clients use, where it is not `host`. What is older than `keep_days` is cut, as
    far as a backup in the directory `backups` holds it; 0 keeps all. `resources` are texts `NAME=N`: things
    of which there are so many for all Sites. `mail` is the file mail.toml, of a Hub that takes mail;
    `amqp` is amqp.toml, of one that is linked to a message broker.
    """

    data: Path
    db: str | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tls_cert: Path | None = None
    tls_key: Path | None = None
    log_level: str = "info"
    ready_file: Path | None = None
    url_host: str | None = None
    keep_days: float = 0.0
    backups: Path | None = None
    resources: Sequence[str] = ()
    mail: Path | None = None
    workers: int = 4
    amqp: Path | None = None


def run(options: HubOptions) -> int:
    """Run a Hub until SIGTERM or SIGINT. Returns the exit code; errors go to stderr in words."""
    # Nothing that is made while starting becomes garbage: looking for it takes an eighth of the time.
    gc.disable()
    logs.configure(options.log_level)
    try:
        arm_from_env()
        _run(options)
    except ChappeError as error:
        print(f"chappe hub: {error.message}", file=sys.stderr)
        return 1
    return 0


def _run(options: HubOptions) -> None:
    # Imported here, so that `--help` and wrong options cost nothing.
    from chappe.hub import tls
    from chappe.hub.bootstrap import ensure_owner, user_path
    from chappe.store.db import open_store

    keep = _retention(options)
    shared = _shared(options.resources)
    mail = _mail(options)
    links = _links(options)
    data = options.data.absolute()
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise Unavailable(
            f"cannot make the directory {data}: {e.strerror}; choose another with --data",
            field="data",
        ) from None
    url = database(data, options.db)
    listener: socket.socket | None = None
    while True:
        try:
            store = open_store(url, clock=now, data=data)
        except Unavailable as error:
            from chappe.hub import standby

            if not standby.can_wait(error, url):
                raise
            listener = listener or _bind(options)
            files = tls.files(data, options.tls_cert, options.tls_key, now())
            say = functools.partial(_say, options, "standby", _url(options, listener))
            if standby.wait(url, files, listener, say):
                continue
            return
        try:
            store.writer.share(shared)
            listener = listener or _bind(options)
            address = _url(options, listener)
            files = tls.files(data, options.tls_cert, options.tls_key, now())
            for path in ensure_owner(store, data, address, files.ca, user_path()):
                print(f"wrote {path}: the client's configuration, with its token", file=sys.stderr)
            _serve(options, store, files, listener, address, keep, mail, links)
        finally:
            store.close()
        if not store.writer.superseded:
            break
    log.info("stopped")


def _shared(texts: Sequence[str]) -> dict[str, int]:
    from chappe.core.jobs import Resources, check_resources

    named: dict[str, int] = {}
    for text in texts:
        name, _, count = text.partition("=")
        if not count.isdecimal():
            raise Invalid(f"--resource {text!r} is not of the form NAME=N", field="resources")
        named[name] = int(count)
    check_resources(Resources(named=named))
    return named


def _retention(options: HubOptions) -> Retention | None:
    from chappe.hub.retention import Retention

    if options.keep_days == 0:
        return None
    if options.keep_days < 0 or options.backups is None:
        raise Invalid(
            "--keep-days wants a number of days above 0, and --backups: what is cut must be in a backup",
            field="keep_days",
        )
    return Retention(options.keep_days * 86_400, options.backups.absolute())


def _mail(options: HubOptions) -> Configured | None:
    if options.mail is None:
        return None
    try:
        from chappe.hub.mail import load
    except ImportError as error:
        raise Unavailable(f"{error}: take mail with pip install 'chappe[mail]'") from None
    return load(options.mail)


def _links(options: HubOptions) -> Sequence[Callable[[Hub], Awaitable[None]]]:
    """What runs beside the Hub's own loops."""
    if options.amqp is None:
        return ()
    try:
        from chappe.bus.amqp_config import load
        from chappe.hub.amqp import loops
    except ImportError as error:
        raise Unavailable(f"{error}: --amqp wants pip install 'chappe[amqp]'") from None
    return loops(load(options.amqp))


def _bind(options: HubOptions) -> socket.socket:
    from chappe.hub.serve import bind

    try:
        return bind(options.host, options.port)
    except OSError as e:
        raise Unavailable(
            f"cannot listen on {options.host} port {options.port}: {e.strerror or e}; "
            "choose another with --host and --port",
            field="port",
        ) from None


def _url(options: HubOptions, listener: socket.socket) -> str:
    return f"https://{_url_host(options)}:{listener.getsockname()[1]}"


def _url_host(options: HubOptions) -> str:
    if options.url_host is not None:
        return options.url_host
    if options.host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return socket.gethostname()
    return f"[{options.host}]" if ":" in options.host else options.host


def _serve(
    options: HubOptions,
    store: Store,
    files: tls.Files,
    listener: socket.socket,
    url: str,
    keep: Retention | None,
    mail: Configured | None,
    links: Sequence[Callable[[Hub], Awaitable[None]]],
) -> None:
    import uvloop

    from chappe.hub import loops, serve
    from chappe.hub import workers as bus
    from chappe.hub.app import create_app
    from chappe.hub.state import Hub

    serve.allow_files()

    async def main() -> None:
        hub = Hub(store, now, boottime)
        hub.start()
        app = create_app(hub)
        post = None
        workers = [bus.loop(options.workers)] if options.workers else []
        upkeep = asyncio.create_task(loops.run(hub, keep, [*links, *workers]))
        server = serve.Server(
            serve.config(app, files), ready=lambda: _say_ready(options, url), stop=hub.stop
        )
        # Where another Hub took over, this one ends in order, and waits for its turn again.
        loop = asyncio.get_running_loop()
        store.writer.on_superseded = functools.partial(_stop_from_a_thread, loop, server)
        try:
            if mail is not None:
                post = await mail.begin(hub)
            await server.serve(sockets=[listener.dup()])
        finally:
            if post is not None:
                await post.stop()
            hub.stop()
            await upkeep
            hub.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _stop_from_a_thread(loop: asyncio.AbstractEventLoop, server: serve.Server) -> None:
    """Stop serving, as after a signal."""
    loop.call_soon_threadsafe(server.stop_serving)


def _say_ready(options: HubOptions, url: str) -> None:
    gc.freeze()
    # A request of 1 000 Jobs makes tens of thousands of objects, all of which end with it: at the default
    # threshold of 700, each is looked at for cycles many times.
    gc.set_threshold(50_000, 20, 20)
    gc.enable()
    # The writer's thread and the loop take turns at the interpreter. At the default of 5 ms, an acquire
    # beside large creates waits for several such turns.
    sys.setswitchinterval(0.0005)
    _say(options, "ready", url)


def _say(options: HubOptions, what: str, url: str) -> None:
    line = f"hub {what} {url}"
    if options.ready_file is not None and what == "ready":
        from chappe.link.files import write_atomic

        write_atomic(options.ready_file, f"{line}\n".encode(), 0o644, durable=False)
    print(line, flush=True)
    log.info(what, url=url, pid=os.getpid())


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m chappe.hub`; the exit code."""
    parser = argparse.ArgumentParser(prog="chappe hub start", description="Start a hub.")
    parser.add_argument("--data", type=Path, default=default_data(), help="directory of its files")
    parser.add_argument("--db", help="sqlite:///PATH, or postgresql://USER@HOST/NAME")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0: a free one")
    parser.add_argument("--url-host", help="name that clients use, where it is not --host")
    parser.add_argument(
        "--tls-cert", type=Path, help="certificate (PEM), instead of a self-made one"
    )
    parser.add_argument("--tls-key", type=Path, help="its key (PEM)")
    parser.add_argument(
        "--keep-days", type=float, default=0.0, help="cut what is older; 0: nothing"
    )
    parser.add_argument("--backups", type=Path, help="directory of backups that hold what is cut")
    parser.add_argument(
        "--resource",
        dest="resources",
        action="append",
        default=[],
        metavar="NAME=N",
        help="count a licence or the like over all sites; repeat",
    )
    parser.add_argument("--workers", type=int, default=4, help="threads that take from the bus")
    parser.add_argument("--mail", type=Path, help="file that says which mail to take (mail.toml)")
    parser.add_argument("--amqp", type=Path, help="file that names a message broker (amqp.toml)")
    parser.add_argument("--log-level", choices=sorted(logs.LEVELS), default="info")
    parser.add_argument("--ready-file", type=Path, help="file to write the ready line to")
    given = parser.parse_args(arguments)
    return run(HubOptions(**vars(given)))
