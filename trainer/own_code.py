"""A user's own Python function, named as ``file.py:function``."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from capture.errors import ConfigError


def load_function(name: str, option: str) -> Callable[..., Any]:
    """Import the file and find the function.

    Args:
        name: ``file.py:function``.
        option: What named it, for messages.

    Raises:
        ConfigError: If there is no such file or function, or the file cannot be imported.
    """
    file, _, function = name.rpartition(":")
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise ConfigError(f"{option} is {name!r}: {path} is not a Python file")
    spec = importlib.util.spec_from_file_location(f"users_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{option}: Python cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # it is not our code
        raise ConfigError(f"{option}: {path} cannot be imported: {error!r}") from error
    found: Callable[..., Any] | None = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"{option}: {path} has no function {function!r}")
    return found


def python_value(found: object) -> object:
    """What a function returned; of numpy's bools and numbers Python's own."""
    return found.item() if isinstance(found, np.generic) else found
