"""Optional packages: imported on use, with the line that installs them when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from onmt_llm.errors import UnsupportedError


def require(module: str, feature: str, package: str | None = None) -> ModuleType:
    """Import `module`, or say which feature needs it and how to install it.

    Args:
        module: Import name, e.g. "bitsandbytes".
        feature: What the user asked for, e.g. "quant_type: bnb_8bit".
        package: What pip installs, where that differs from `module`.

    Raises:
        UnsupportedError: The module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnsupportedError(
            f"{feature} needs the package '{package or module}', which cannot be imported here ({error}).",
            hint=f"pip install {package or module}",
        ) from error
