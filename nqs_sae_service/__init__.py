"""Train neural quantum states, take them apart with sparse autoencoders, prove and steer what is found.

Read results with ``open_run`` and ``open_sweep``; everything else is the command line (``nqs-sae --help``).
"""

__version__ = "0.1.0"

__all__ = ["open_run", "open_sweep"]


def __getattr__(name: str):
    """Load the readers only when asked for, so that ``import nqs_sae_service`` and ``nqs-sae --help`` are instant."""
    if name in __all__:
        from . import datasets

        return getattr(datasets, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
