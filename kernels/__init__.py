"""Triton kernels, one file each: ``from reference.kernels.w4a16 import w4a16``.

Importing this package or any file in it needs no Triton and no GPU; launching a kernel does.
"""

import sys

if __name__ == "kernels":
    # Imported by the folder's own name: the repository's root is on sys.path and hides PyPI's `kernels`, which
    # transformers looks for. Stand aside for that package; where it is missing, version 0 tells transformers that
    # what it found is of no use (transformers 5.8 fails on import where there is no version).
    __version__ = "0"

    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec
    from pathlib import Path

    # Roots that stood aside: with a second checkout on sys.path each would otherwise make way for the other, for ever.
    _aside = {*globals().get("_aside", ()), Path(__file__).resolve().parents[1]}
    _other = PathFinder.find_spec(__name__, [entry for entry in sys.path if Path(entry).resolve() not in _aside])
    if _other is not None and _other.loader is not None:
        sys.modules[__name__] = module_from_spec(_other)
        vars(sys.modules[__name__])["_aside"] = _aside
        _other.loader.exec_module(sys.modules[__name__])
