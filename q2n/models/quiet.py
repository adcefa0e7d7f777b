"""Context in which transformers shows no progress bars and warnings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars, and messages of transformers and the hub below errors, inside the block."""
    library, hub = cast(Any, transformers_logging), logging.getLogger("huggingface_hub")
    bars, levels = library.is_progress_bar_enabled(), (library.get_verbosity(), hub.level)
    library.disable_progress_bar()
    library.set_verbosity_error()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.set_verbosity(levels[0])
        hub.setLevel(levels[1])
        if bars:
            library.enable_progress_bar()
