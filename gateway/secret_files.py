"""Secrets that the gateway makes for itself, in files only it can read; and their folder."""

import secrets
from pathlib import Path

from capture.errors import ConfigError


def admin_key(run_dir: Path) -> str:
    """The operators' key."""
    return secret_in(run_dir / "admin.key")


def key_pepper(run_dir: Path, given: str | None = None) -> bytes:
    """What API keys are digested with; gateways that share a state store must be given the same."""
    return (given or secret_in(run_dir / "key.pepper")).encode()


def secret_in(path: Path) -> str:
    """Read a secret, making one of 256 bits at the first call.

    Raises:
        ConfigError: If the file is there but empty.
    """
    if not path.exists():
        draft = path.with_name(f"{path.name}.tmp")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_urlsafe(32), encoding="utf-8")
        draft.replace(path)
    secret = path.read_text(encoding="utf-8").strip()
    if not secret:
        raise ConfigError(f"{path}: empty; remove it, and the next start makes a new one")
    return secret


def make_folder(key: str, folder: Path) -> None:
    """Make a folder of the configuration if it is not there.

    Raises:
        ConfigError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key} is {folder}: {error.strerror}; name another folder") from error
