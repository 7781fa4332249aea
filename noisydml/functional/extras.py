"""Packages that noisydml does not depend on, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def optional(module: str, user: str, *, package: str = "", extra: str = "") -> Any:
    """An optional module.

    Args:
        module: its name.
        user: what needs it.
        package: that has it, if it is called otherwise.
        extra: of noisydml, that has the package.

    Raises:
        ImportError: if it cannot be imported, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = package or module.split(".")[0]
        clone = f'pip install ".[{extra}]" in a clone of noisydml, or ' if extra else ""
        raise ImportError(f"{user} needs {package}: {clone}pip install {package}") from error
