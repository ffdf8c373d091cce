"""The fitted state of a method as named arrays: what an artifact stores, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from etude.core.errors import EtudeError

__all__ = ["get_state", "n_bytes", "set_state"]


def get_state(method: Any) -> dict[str, np.ndarray]:
    """Named arrays of a fitted method.

    A torch module gives its ``state_dict``; any other object its attributes whose names end
    in "_" (scikit-learn's sign for what fit found), which must be arrays or numbers.

    Raises:
        EtudeError: a fitted attribute that is neither array nor number.
    """
    if hasattr(method, "state_dict"):
        return {
            name: value.detach().cpu().numpy().copy() for name, value in method.state_dict().items()
        }
    state = {}
    for name, value in vars(method).items():
        if name.endswith("_") and not name.startswith("_"):
            array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
            if array.dtype == object:
                raise EtudeError(f"{type(method).__name__}.{name} must be an array or a number")
            state[name] = array.copy()
    return state


def set_state(method: Any, state: Mapping[str, np.ndarray]) -> None:
    """Give `method`, newly built with the same arguments, the state of a fitted one.

    Raises:
        EtudeError: names or shapes do not match (torch modules).
    """
    if hasattr(method, "load_state_dict"):
        import torch

        try:
            method.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in state.items()})
        except RuntimeError as error:
            raise EtudeError(f"state does not fit {type(method).__name__}: {error}") from None
        method.eval()
        return
    for name, array in state.items():
        setattr(method, name, array.item() if array.ndim == 0 else np.array(array))


def n_bytes(method: Any) -> int:
    """Bytes of the state: what keeping the fitted method costs."""
    return sum(array.nbytes for array in get_state(method).values())
