"""New arrays in memory that was used before: the system takes longer to zero new pages than most work to fill them."""

from typing import Any

from latentq import _core

LARGE: int = _core.LARGE
"""Bytes from which on arrays take recycled memory: the C library recycles smaller ones well."""


def new_array(shape: tuple[int, ...], dtype: Any) -> Any:
    """Returns an array whose contents are arbitrary, as `numpy.empty` does.

    It owns its memory. Where that is large, it is aligned to cache lines, and the next array takes it when this one is
    gone: at most 128 MiB are kept, and freed once others come and go while they were not used for two seconds.

    Args:
        shape: The array's shape.
        dtype: The type of its elements.

    Raises:
        ValueError: The elements are objects.
    """
    return _core.new_array(shape, dtype)
