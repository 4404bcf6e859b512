"""Search methods, a module each.

A method has `run(problem, options)`, which returns the chosen combination; `budget(options)`, the combinations that it
measures at most; and `USES_PROFILE`, whether it looks at the layers' sensitivity.
"""

from types import ModuleType


def method(name: str) -> ModuleType:
    """The search method of a name; only its own module is imported."""
    if name == "uniform":
        from wshare.search.by_k import uniform as found
    elif name == "two_step":
        from wshare.search.by_k import two_step as found
    elif name == "slope":
        from wshare.search.by_k import slope as found
    elif name == "milp":
        from wshare.search.by_k import milp as found
    elif name == "greedy":
        from wshare.search.by_k import greedy as found
    else:
        raise ValueError(f"no search method {name!r}")
    return found
