"""Optional packages: imported on use; the error for a missing one says how to install it."""

from __future__ import annotations

import importlib
from types import ModuleType

from onmt_llm.errors import UnsupportedError


def require(module: str, feature: str, package: str | None = None) -> ModuleType:
    """Import `module`, or raise an error that says which feature needs it and how to install it.

    Args:
        module: Import name, e.g. "bitsandbytes".
        feature: What the user asked for, e.g. "quant_type: bnb_8bit".
        package: Name of the package for pip, if it differs from `module`.

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
