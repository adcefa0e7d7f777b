"""Whether a baseline, a correction and a model fit each other, from their settings and sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from q2n.exceptions import ModelError, UnsupportedError
from q2n.models.shapes import Skeleton

if TYPE_CHECKING:
    from q2n.config import RunConfig


def misfit(config: RunConfig) -> UnsupportedError | None:
    """Why the cell can never run, or None if nothing speaks against it before its model is loaded."""
    try:
        config.correction.bind(config.baseline)
        skeleton: Any = Skeleton(config.model.shapes())
        config.baseline.check(skeleton)
    except UnsupportedError as error:
        return error
    except ModelError:
        return None  # its sizes are not at hand: looked at when it is loaded
    except Exception:
        return None  # a method that looks at more than sizes: the same check follows with the model loaded
    return None
