"""Search methods: each is one module with `run(problem, options) -> Combination`."""

from collections.abc import Callable

from wshare.search.problem import Combination, Problem


def method(name: str) -> Callable[[Problem, dict], Combination]:
    """The search method of a name; only its own module is imported."""
    if name == "uniform":
        from wshare.search.uniform import run
    elif name == "two_step":
        from wshare.search.two_step import run
    elif name == "slope":
        from wshare.search.slope import run
    else:
        raise ValueError(f"no search method {name!r}")
    return run
