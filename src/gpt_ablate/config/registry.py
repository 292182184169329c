"""Names to builders: the only way a name in a config becomes code."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_type_hints

from gpt_ablate.utils.errors import Problem, UsageError, closest

Builder = TypeVar("Builder", bound=Callable[..., Any])


_REGISTERING = (
    "data.tokenizer_files",
    "data.text_sources",
    "data.token_sources",
    "data.tasks",
    "models.initialization",
    "models.objectives",
    "training.callbacks",
    "training.optimizers",
    "training.schedules",
    "training.hardware_rules",
)
"""Modules beside the axes that register options or rules when they are imported."""
_AXES = Path(__file__).parents[1] / "axes"


class Registry(Generic[Builder]):
    """The variants of one axis (or the options of one setting).

    A builder takes what the framework supplies as positional arguments, and the
    variant's own parameters, those a YAML may set, as keyword-only arguments.
    """

    by_key: ClassVar[dict[str, Registry[Any]]] = {}

    def __init__(self, key: str, supplied: Sequence[str] = (), common: Sequence[str] = ()) -> None:
        """`supplied` names the positional arguments that the framework passes to every builder.

        `common` names the keys that every YAML of the group may have and no builder is given.
        """
        if key in self.by_key:
            raise ValueError(f"there is already a registry for {key!r}")
        self.key, self.supplied, self.common = key, tuple(supplied), ("name", *common)
        self.builders: dict[str, Builder] = {}
        self.by_key[key] = self

    def register(self, name: str) -> Callable[[Builder], Builder]:
        """Make the decorated builder available as `<key>.name=<name>`.

        Raises ValueError if the name is taken: two variants of one name cannot be compared.
        """

        def add(builder: Builder) -> Builder:
            if not callable(builder):
                raise TypeError(f"{self.key}={name} is {builder!r}, which cannot be called")
            if name in self.builders:
                raise ValueError(f"{self.key}={name} is registered twice")
            self._check_signature(name, builder)
            self.builders[name] = builder
            return builder

        return add

    def _check_signature(self, name: str, builder: Builder) -> None:
        """Raise TypeError unless the builder takes what the framework passes, and nothing else by position."""
        signature = inspect.signature(builder)
        by_position = [it for it in signature.parameters.values() if it.kind is not inspect.Parameter.KEYWORD_ONLY]
        try:
            signature.replace(parameters=by_position).bind(*self.supplied)
        except TypeError as error:
            wanted = ", ".join(self.supplied)
            raise TypeError(f"{self.key}={name}: a builder is called with ({wanted}): {error}") from error

    def parameters(self, name: str) -> dict[str, Any]:
        """The variant's own parameters: name -> type, with its range where it is `Annotated` with one."""
        builder = self.builders[name]
        target = builder.__init__ if inspect.isclass(builder) else builder
        hints = get_type_hints(target, include_extras=True)
        return {
            parameter.name: hints.get(parameter.name, Any)
            for parameter in inspect.signature(builder).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

    def every_parameter(self) -> list[str]:
        """The parameters that any variant takes."""
        own = {parameter for name in self.builders for parameter in self._readable(name)}
        return sorted(own.union(self.common) - {"name"})

    def takes(self, name: str, parameter: str) -> bool:
        """Whether a variant may have this key: a parameter of its own, or one that all of the group have."""
        return parameter in self.common or parameter in self._readable(name)

    def _readable(self, name: str) -> Iterable[str]:
        try:
            return self.parameters(name)
        except (NameError, TypeError, ValueError):  # `check` tells of it where the variant is chosen
            return ()

    def takers(self, parameter: str) -> list[str]:
        """The variants that take this parameter, as overrides: ["schedule=cosine", "schedule=warmup"]."""
        return [f"{self.key}={name}" for name in sorted(self.builders) if self.takes(name, parameter)]

    def check(self, node: Mapping[str, Any]) -> list[Problem]:
        """Everything that would keep `build(node)` from working.

        A parameter that is null counts as not given, unless null is one of its values.
        """
        name = node.get("name")
        if not isinstance(name, str) or name not in self.builders:
            choices = sorted(self.builders)
            guess = closest(name, choices)
            choices.sort(key=lambda choice: choice != guess)
            return [Problem(f"{self.key}.name", name, f"one of {', '.join(choices)}", guess)]
        try:
            accepted = self.parameters(name)
        except (NameError, TypeError, ValueError) as error:
            return [Problem(f"{self.key}.name", name, f"a builder whose parameters can be read ({error})")]
        listed = ", ".join(sorted(accepted)) or "none"
        problems = []
        for key, value in self._given(node, accepted).items():
            where = f"{self.key}.{key}"
            if key not in accepted:
                of_others = f"; a parameter of {', '.join(takers)}" if (takers := self.takers(key)) else ""
                allowed = f"{self.key}={name} takes no such parameter (accepted: {listed}{of_others})"
                problems.append(Problem(where, value, allowed, closest(key, accepted)))
            elif message := _mistyped(accepted[key], value):
                problems.append(Problem(where, value, message))
        return problems

    def _given(self, node: Mapping[str, Any], accepted: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a node less those that are null and need not be given."""
        required = {
            parameter.name
            for parameter in inspect.signature(self.builders[node["name"]]).parameters.values()
            if parameter.default is inspect.Parameter.empty
        }
        return {
            key: value
            for key, value in node.items()
            if key not in self.common
            and (value is not None or key in required or (key in accepted and not _mistyped(accepted[key], None)))
        }

    def bind(self, node: Mapping[str, Any]) -> functools.partial[Any]:
        """The builder of `node["name"]` with the node's other entries as keyword arguments.

        Raises UsageError for an unknown name or parameter.
        """
        if problems := self.check(node):
            raise UsageError(problems)
        own = self._given(node, self.parameters(node["name"]))
        return functools.partial(self.builders[node["name"]], **own)

    def build(self, node: Mapping[str, Any], *context: Any) -> Any:
        """Call the builder with what the framework supplies (`context`) and the node's parameters."""
        return self.bind(node)(*context)


def _mistyped(expected: Any, value: Any) -> str | None:
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(expected).validate_python(value, strict=True)
    except ValidationError as error:
        return error.errors()[0]["msg"].replace("Input should be", "should be")
    return None


@functools.cache
def axis_names() -> tuple[str, ...]:
    """The axes: one per file in `gpt_ablate/axes/`, found without importing any."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules([str(_AXES)])))


def load(plugins: Iterable[str] = ()) -> None:
    """Import every axis, the package's other registries, and the user's plugin modules.

    Raises UsageError for a plugin that cannot be imported.
    """
    for axis in axis_names():
        importlib.import_module(f"gpt_ablate.axes.{axis}")
    for module in _REGISTERING:
        importlib.import_module(f"gpt_ablate.{module}")
    problems = []
    for plugin in plugins:
        try:
            importlib.import_module(plugin)
        except (Exception, SystemExit) as error:
            reason = f"a module that can be imported ({type(error).__name__}: {' '.join(str(error).split())})"
            problems.append(Problem("plugins", plugin, reason))
    if problems:
        raise UsageError(problems)
