"""Sources of networks: a row each, with the module that fetches from it and the configuration's keys that it reads.

Read while the Snakefile is parsed: nothing is imported here, and a module only when a model names its source.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType

from wshare.errors import UserError
from wshare.names import closest


@dataclass(frozen=True)
class Source:
    """Where networks come from.

    `module` has `fetch(settings, cache)`, which gives a `Fetched`; None for networks that the workflow trains itself.
    `builders`, keys of BUILDERS, are those that its networks may be built by. `keys` are the keys of a model that this
    source reads and some do not; the `required` of them must be set.
    """

    name: str
    module: str | None
    builders: tuple[str, ...]
    keys: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether the workflow trains the networks itself."""
        return self.module is None

    @property
    def modules(self) -> tuple[str, ...]:
        """All modules that a network of this source may be made by."""
        own = () if self.module is None else (self.module,)
        return (*own, *(BUILDERS[kind] for kind in self.builders))


# Modules below wshare.models with `build(name, arguments)`, the network without weights; model.json names the kind.
# Those of SPELLED have `from_weights(name, settings, weights)` too, and an architecture may be spelled by them.
BUILDERS = {
    "torchvision": "sources.torchvision",
    "timm": "sources.timm",
    "efficientnet_lite": "sources.efficientnet_lite",
    "onnx": "sources.onnx",
    "torch_export": "sources.torch_export",
    "python": "sources.python",
    "embedded": "zoo",
}

SPELLED = ("torchvision", "timm", "python")
# Sources of files that hold graph and weights; an architecture `<source>:<file>` names one.
WHOLE = ("onnx", "torch_export")

SOURCES = {
    source.name: source
    for source in (
        Source("train", None, ("embedded",), keys=("architecture", "training"), required=("architecture",)),
        Source(
            "torchvision",
            "sources.torchvision",
            ("torchvision",),
            keys=("architecture", "weights", "url", "path", "sha256", "classes"),
            required=("architecture",),
        ),
        Source(
            "timm",
            "sources.timm",
            ("timm",),
            keys=("architecture", "weights", "path", "sha256", "key", "classes"),
            required=("architecture",),
        ),
        Source(
            "efficientnet_lite",
            "sources.efficientnet_lite",
            ("efficientnet_lite",),
            keys=("architecture", "classes"),
            required=("architecture",),
        ),
        Source(
            "file",
            "sources.file",
            SPELLED,
            keys=("architecture", "path", "sha256", "key", "classes"),
            required=("architecture", "path"),
        ),
        *(
            Source(name, f"sources.{name}", (name,), ("architecture", "path", "sha256", "classes"), required=("path",))
            for name in WHOLE
        ),
        Source("python", "sources.python", ("python",), ("architecture", "classes"), required=("architecture",)),
    )
}


def load_module(name: str) -> ModuleType:
    """The module of a row, which is imported only now."""
    return importlib.import_module(f"wshare.models.{name}")


def whole_file(architecture: str) -> dict:
    """Settings of a network in a file that holds graph and weights, `source:file`; none for another architecture."""
    source, _, path = architecture.partition(":")
    return {"source": source, "path": path} if source in WHOLE and path else {}


def spelled(architecture: str) -> tuple[str, str]:
    """Kind of builder and name of an architecture that is spelled `name`, of torchvision, or `kind:name`.

    UserError if there is no such kind.
    """
    kind, colon, name = architecture.partition(":")
    if not colon:
        return "torchvision", architecture
    if kind not in SPELLED:
        raise UserError(
            f"architecture: {architecture!r}: give a torchvision name, timm:<name> or python:<module>:<function>. "
            f"{closest(kind, SPELLED)}"
        )
    return kind, name
