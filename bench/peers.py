"""transformers, imported from the repository's root without taking our folder kernels/ for the package of that name."""

import os
import sys
from types import ModuleType


def import_transformers() -> ModuleType:
    """The transformers module, with the current folder out of the way while it is imported."""
    path = list(sys.path)
    sys.path[:] = [p for p in path if os.path.abspath(p) != os.getcwd()]
    try:
        import transformers
        from transformers import AutoModelForCausalLM  # noqa: F401 - the lazy parts look for `kernels` too
    finally:
        sys.path[:] = path
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
