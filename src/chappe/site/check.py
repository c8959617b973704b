"""Look a Site over: what is wrong, and what to do about it. Changes nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import msgspec

from chappe.core.errors import ChappeError, Invalid, Unauthenticated, Unavailable
from chappe.core.limits import MIB
from chappe.link.apps import AppProblem, load_app
from chappe.link.clock import now
from chappe.link.functions import DEFAULT, FunctionEnvironment
from chappe.link.http import HubClient, RetryPolicy
from chappe.link.spool import SpoolCorrupt
from chappe.link.trust import TrustedKeys
from chappe.site import config as site_config
from chappe.site import schedulers, status
from chappe.site.agent import read_token
from chappe.site.book import read_book
from chappe.site.check_way import pilots_way
from chappe.site.command import run
from chappe.site.config import SiteConfig
from chappe.site.finding import Finding, Level
from chappe.site.paths import SitePaths
from chappe.site.sessions import claimed_at
from chappe.site.status import Presence
from chappe.wire.sites import Whoami

SKEW_WARN_S = 5.0
SKEW_WRONG_S = 300.0
DISK_WARN_BYTES = 1024 * MIB
DISK_WRONG_BYTES = 100 * MIB
INODES_WRONG = 1_000

_REMEDIES = {
    "refused": "start the hub, or correct [hub] url in site.toml; is a firewall in between?",
    "unknown_host": "correct [hub] url in site.toml",
    "tls": "set [hub] ca_file in site.toml to the hub's certificate authority",
    "timeout": "is a proxy needed? set [hub] proxy in site.toml, or HTTPS_PROXY",
    "proxy": "correct [hub] proxy in site.toml, or HTTPS_PROXY",
}


def check_site(directory: Path | str) -> list[Finding]:
    """Everything worth knowing about a Site's directory and its surroundings; takes some seconds."""
    paths = SitePaths.of(Path(directory))
    found = [_python()]
    try:
        config = site_config.load(paths.root)
    except Invalid as e:
        return [*found, Finding(Level.ERROR, e.message, "correct the line, or make a new site")]
    found.append(Finding(Level.OK, f"{paths.config} is in order (site {config.site.name})"))
    found += _permissions(paths)
    found += _apps(paths)
    found += _trust(paths)
    found += _disk(paths)
    found += _agent(paths)
    found += began_unknown(paths, config)
    found += asyncio.run(_outside(paths, config))
    return found


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(Level.OK, f"Python {version} at {sys.executable} (it must exist on all nodes)")


def _permissions(paths: SitePaths) -> Iterator[Finding]:
    wrong = False
    for path, forbidden, why in (
        (paths.root, 0o022, "others could change what runs under your account"),
        (paths.apps, 0o022, "others could change what runs under your account"),
        (paths.config, 0o022, "others could change what runs under your account"),
        (paths.secrets, 0o077, "it holds the site's token"),
        (paths.token, 0o077, "it is the site's token"),
        (paths.sessions, 0o077, "it holds the tokens of sessions"),
        (paths.outbox, 0o077, "it is the agent's own"),
    ):
        try:
            seen = path.stat()
        except FileNotFoundError:
            wrong = True
            yield Finding(Level.ERROR, f"{path} is missing", "restore it, or make a new site")
            continue
        if seen.st_uid != os.geteuid():
            wrong = True
            yield Finding(
                Level.ERROR, f"{path} belongs to another user", f"run as user {seen.st_uid}"
            )
        mode = stat.S_IMODE(seen.st_mode)
        if mode & forbidden:
            wrong = True
            yield Finding(
                Level.ERROR,
                f"{path} has mode {mode:04o}: {why}",
                f"chmod {mode & ~forbidden:o} {path}",
            )
    if not wrong:
        yield Finding(Level.OK, "owner and permissions of secrets and settings are in order")


def _apps(paths: SitePaths) -> Iterator[Finding]:
    names = []
    for path in sorted(paths.apps.glob("*.toml")):
        try:
            names.append(load_app(path).app.name)
        except AppProblem as e:
            yield Finding(Level.ERROR, e.message, "correct the file; until then it is not offered")
    if names:
        yield Finding(Level.OK, f"apps: {', '.join(sorted(names))}")
    else:
        yield Finding(
            Level.WARNING, "no app can be used", f"describe one in {paths.apps}/NAME.toml"
        )
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield Finding(Level.ERROR, f"two files define the app {name}", "rename one of them")


def _trust(paths: SitePaths) -> Iterator[Finding]:
    try:
        keys = TrustedKeys(paths.trusted_keys).current()
    except ChappeError as e:
        yield Finding(Level.ERROR, e.message, "correct the file; until then nothing signed is run")
        return
    if keys:
        yield Finding(Level.OK, f"{len(keys)} trusted key(s)")
    else:
        yield Finding(
            Level.WARNING,
            f"{paths.trusted_keys} trusts nobody: only Apps marked `unsigned` can be used",
            "add a line `ed25519 <base64 public key> <comment>`",
        )


def _disk(paths: SitePaths) -> Iterator[Finding]:
    free = shutil.disk_usage(paths.root).free
    inodes = os.statvfs(paths.root)
    told = f"{free / 1024 / MIB:.1f} GiB free in {paths.root}"
    remedy = "remove what is no longer needed from data/ and logs/"
    if free < DISK_WRONG_BYTES:
        yield Finding(Level.ERROR, told, remedy)
    elif inodes.f_files and inodes.f_favail < INODES_WRONG:
        yield Finding(Level.ERROR, f"only {inodes.f_favail} more files can be made", remedy)
    elif free < DISK_WARN_BYTES:
        yield Finding(Level.WARNING, told, remedy)
    else:
        yield Finding(Level.OK, told)


def _agent(paths: SitePaths) -> Iterator[Finding]:
    seen = status.describe(paths.root, status.read(paths.pid_file))
    if seen.presence is Presence.RUNNING:
        yield Finding(Level.OK, seen.message)
    elif seen.presence is Presence.ELSEWHERE:
        yield Finding(Level.OK, seen.message, f"look at it on {seen.host}")
    else:
        yield Finding(Level.WARNING, seen.message, f"chappe site start {paths.root}")


def began_unknown(paths: SitePaths, config: SiteConfig) -> Iterator[Finding]:
    """Allocations that have begun and that the scheduler does not know: nobody sees them end."""
    if not schedulers.make(config.scheduler.kind, str(paths.scheduler_records)).quirks.shared:
        return
    try:
        batches = read_book(paths.book).batches.values()
    except (SpoolCorrupt, OSError) as e:
        yield Finding(Level.ERROR, f"{paths.book}: {e}", "start the agent: it sets the file aside")
        return
    for batch in batches:
        began_at = claimed_at(paths, batch.wanted.session)
        if began_at is None or batch.scheduler_id is not None or batch.over:
            continue
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(began_at))
        yield Finding(
            Level.WARNING,
            f"the allocation of BatchJob {batch.id} began at {began}, under an id that nobody knows",
            "it is given up when its whole time has passed; when you know that it has ended: "
            f"chappe session end {batch.wanted.session} --may-run-twice",
        )


async def _outside(paths: SitePaths, config: SiteConfig) -> list[Finding]:
    hub, scheduler, launchers, functions, way = await asyncio.gather(
        _hub(paths, config),
        _scheduler(paths, config),
        _launchers(config),
        _functions(config),
        pilots_way(paths, config),
    )
    return [*hub, scheduler, *launchers, *functions, *way]


async def _launchers(config: SiteConfig) -> list[Finding]:
    """What starts hands and ranks, as it looks from this node."""
    local = config.scheduler.kind == "local"
    hands = "" if local or config.pilot.hands else config.launch.hands
    ranks = "" if config.pilot.ranks else config.launch.ranks
    options = [f"--hands={hands}", f"--ranks={ranks}", f"--scheduler={config.scheduler.kind}"]
    ran = await run([sys.executable, "-P", "-m", "chappe.pilot.launchers", *options])
    if ran.exit_code != 0:
        said = (ran.stderr.strip().splitlines() or ["it failed"])[-1]
        remedy = "correct [launch] in site.toml"
        return [Finding(Level.ERROR, f"launchers: {said[-300:]}", remedy)]
    return [Finding(Level.OK, told) for told in msgspec.json.decode(ran.stdout, type=list[str])]


async def _functions(config: SiteConfig) -> list[Finding]:
    """Whether each environment for functions starts, as a zygote would."""
    rules = config.functions
    if not rules.allowed:
        return []
    return [await _environment(config, name) for name in sorted({DEFAULT, *rules.environments})]


async def _environment(config: SiteConfig, name: str) -> Finding:
    environment = config.functions.environment(name) or FunctionEnvironment()
    python = environment.python or config.pilot.python or sys.executable
    code = (
        "import sys, importlib, chappe.pilot.zygote\n"
        "for module in sys.argv[1:]: importlib.import_module(module)\n"
        "print('.'.join(map(str, sys.version_info[:3])))"
    )
    variables = [f"{key}={value}" for key, value in environment.env.items()]
    what = f"functions: environment {name!r}"
    try:
        ran = await run(["env", *variables, python, "-P", "-c", code, *environment.preload])
    except OSError as e:
        return Finding(Level.ERROR, f"{what}: {e}", "correct it in site.toml")
    if ran.exit_code != 0:
        said = (ran.stderr.strip().splitlines() or ["it failed"])[-1]
        remedy = f"install what is missing for {python} (Chappe itself, too), or correct site.toml"
        return Finding(Level.ERROR, f"{what}: {said[-300:]}", remedy)
    version = (ran.stdout.split() or ["?"])[-1]
    return Finding(Level.OK, f"{what}: Python {version} at {python}")


async def _hub(paths: SitePaths, config: SiteConfig) -> list[Finding]:
    """One request tells of the network, TLS, the token and the clocks."""
    site_config.use_proxy(config)
    try:
        token = read_token(paths)
        ca_file = config.ca_path(paths.root)
        async with HubClient(config.hub.url, token, ca_file=ca_file) as client:
            sent = now()
            retry = RetryPolicy(tries=2, budget_s=5.0)
            answer = await client.fetch("GET", "/v1/whoami", timeout_s=10.0, retry=retry)
            received = now()
        me = msgspec.json.decode(answer.data, type=Whoami)
    except Unauthenticated as e:
        remedy = f"make it a new one: chappe site token {config.site.name} --to {paths.root}"
        return [Finding(Level.ERROR, f"the hub refuses the site's token: {e.message}", remedy)]
    except Unavailable as e:
        remedy = _REMEDIES.get(e.code, "wait, and look at the hub's log")
        return [Finding(Level.ERROR, e.message, remedy)]
    except (ChappeError, msgspec.DecodeError) as e:
        return [Finding(Level.ERROR, str(e), "correct [hub] in site.toml, or the token")]
    found = [Finding(Level.OK, f"the hub at {config.hub.url} answers (version {me.version})")]
    if me.scope != "site" or me.site != config.site.id:
        found.append(
            Finding(
                Level.ERROR,
                "the token is not this site's",
                f"put the site's own token into {paths.token}",
            )
        )
    date = answer.headers.get("date")
    if date is not None:
        # The header has whole seconds; the answer was made between `sent` and `received`.
        theirs = parsedate_to_datetime(date).timestamp()
        ahead_s = max(sent - theirs - 1.0, 0.0) - max(theirs - received, 0.0)
        found.append(_skew(ahead_s))
    return found


def _skew(ahead_s: float) -> Finding:
    """What to think of this machine's clock being `ahead_s` (below 0: behind) the Hub's."""
    if abs(ahead_s) <= SKEW_WARN_S:
        return Finding(Level.OK, "the clocks of site and hub agree")
    way = "ahead of" if ahead_s > 0 else "behind"
    level = Level.ERROR if abs(ahead_s) > SKEW_WRONG_S else Level.WARNING
    return Finding(
        level,
        f"this machine's clock is {abs(ahead_s):.0f} s {way} the hub's: signatures may seem expired",
        "let NTP set the clocks",
    )


async def _scheduler(paths: SitePaths, config: SiteConfig) -> Finding:
    kind = config.scheduler.kind
    remedy = "correct [scheduler] in site.toml; are its commands in PATH?"
    try:
        scheduler = schedulers.make(kind, str(paths.scheduler_records))
        ran = await run(scheduler.find_commands("chappe-check")[0], timeout_s=30.0)
    except (Invalid, OSError) as e:
        return Finding(Level.ERROR, f"scheduler {kind}: {e}", remedy)
    if ran.exit_code != 0:
        return Finding(Level.ERROR, f"scheduler {kind}: {ran.stderr.strip()[-300:]}", remedy)
    if not scheduler.quirks.verified:
        what = f"the scheduler ({kind}) answers; this adapter was not verified on a real system"
        return Finding(Level.WARNING, what, "try a BatchJob by hand first, and tell what you see")
    if scheduler.quirks.shared and not config.pilot.wall_s:
        what = f"the scheduler ({kind}) answers; [pilot] wall_s is not set"
        remedy = "set it: an allocation that the scheduler forgets is given up only after its time"
        return Finding(Level.WARNING, what, remedy)
    return Finding(Level.OK, f"the scheduler ({kind}) answers")
