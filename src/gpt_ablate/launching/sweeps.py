"""The jobs of a sweep: Hydra's, but that a parameter of a swept group goes to those of its options that take it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf

from gpt_ablate.config import registry
from gpt_ablate.config.registry import Registry
from gpt_ablate.utils.errors import Problem, UsageError, closest

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl


class Sweep:
    """What a multirun's command line asks for, with the `hydra.sweeper.params` of its experiment."""

    def __init__(self, loader: ConfigLoaderImpl, is_group: Callable[[str], object], overrides: list[str]) -> None:
        self._loader, self._is_group = loader, functools.cache(is_group)
        self._nodes: dict[tuple[str, ...], DictConfig] = {}
        self._own = self._parsed(overrides)
        self.given = self._own
        """Every override, those of the experiment first."""
        self.swept: dict[str, str] = {}
        """Parameters of groups that are swept, and these groups."""
        self.notes: list[str] = []
        """Which options a parameter was set for, where it is not all of them."""

    def _parsed(self, lines: list[str]) -> list[Override]:
        return OverridesParser.create(config_loader=self._loader).parse_overrides(lines)

    def bare(self) -> list[str]:
        """The overrides of the command line that set no parameter of an option: any config takes them."""
        return [str(override.input_line) for override in self._own if self._group_of(override) is None]

    def take_params(self, params: Mapping[str, Any] | None) -> None:
        """Take in the sweeper's own `params`, over which the command line's values go."""
        self.given = [*self._parsed([f"{key}={value}" for key, value in (params or {}).items()]), *self._own]
        groups = {each.key_or_group.removesuffix(".name") for each in self.given if each.is_sweep_override()}
        for override in self.given:
            if (group := self._group_of(override)) in groups:
                self.swept[override.key_or_group] = str(group)

    def for_master(self, bare: DictConfig) -> list[str]:
        """The overrides of the config that Hydra composes before any job's; `bare` is composed of those of `bare()`.

        It has the default option of a swept group, which need not take what is set for the others.
        """
        if self.swept:
            registry.load([str(plugin) for plugin in bare.plugins] if OmegaConf.is_list(bare.plugins) else [])
        lines = []
        for override in self._own:
            if override.key_or_group in self.swept and not override.is_sweep_override():
                lines += self._for_option(f"{override.key_or_group}={override.get_value_element_as_str()}", bare)
            else:
                lines.append(str(override.input_line))
        return lines

    def jobs(self, master: DictConfig) -> list[list[str]]:
        """The overrides of every job, in Hydra's order. A job that would be another one once more is left out.

        Raises UsageError for a parameter that no option of the sweep takes.
        """
        of_task = [each for each in self.given if not each.is_hydra_override()]  # every job has those of Hydra already
        every = [replace(each, type=OverrideType.CHANGE) if self._is_swept(each) else each for each in of_task]
        (listed,) = BasicSweeper.split_arguments(every, None)
        if not self.swept:
            return listed
        takers: dict[str, dict[str, bool]] = {key: {} for key in self.swept}
        jobs: dict[tuple[str, ...], list[str]] = {}
        for i, elements in enumerate(listed):
            node, job = self._composed(master, elements), []
            for element in elements:
                kept = self._for_option(element, node)
                job += kept
                if (key := _key(element)) in self.swept and not element.startswith("~"):
                    takers[key][self._option(elements, self.swept[key])] = bool(kept)
            same = tuple(job) if len(job) < len(elements) else (*job, str(i))
            jobs.setdefault(same, job)
        self._tell(takers)
        return list(jobs.values())

    def _tell(self, takers: Mapping[str, Mapping[str, bool]]) -> None:
        problems = []
        for key, options in takers.items():
            taking = [option for option, taken in options.items() if taken]
            lacking = [option for option, taken in options.items() if not taken]
            if options and not taking:
                group, parameter = key.split(".")[:2]
                registered = Registry.by_key.get(group)
                others = registered.takers(parameter) if registered else []
                of_others = f" ({', '.join(others)} would)" if others else ""
                near = closest(parameter, registered.every_parameter()) if registered and not others else None
                told = f"none of {', '.join(lacking)} takes such a parameter{of_others}"
                problems.append(Problem(key, self._value(key), told, f"{group}.{near}" if near else None))
            elif lacking:
                self.notes.append(f"{key}: set for {', '.join(taking)}; {', '.join(lacking)} take no such parameter")
        if problems:
            raise UsageError(problems)

    def _value(self, key: str) -> str:
        return next(each.get_value_element_as_str() for each in self.given if each.key_or_group == key)

    def _is_swept(self, override: Override) -> bool:
        return override.key_or_group in self.swept and not override.is_delete()

    def _option(self, elements: Sequence[str], group: str) -> str:
        return " ".join(element for element in elements if _key(element) in (group, f"{group}.name"))

    def _for_option(self, element: str, composed: DictConfig) -> list[str]:
        """The override `element` as the option that `composed` has takes it: not at all, or added where that is due."""
        if (key := _key(element)) not in self.swept or element.startswith("~"):
            return [element]
        group, parameter = key.split(".")[:2]
        node = composed.get(group)
        if not OmegaConf.is_dict(node):
            return [element]
        registered, name = Registry.by_key.get(group), node.get("name")
        known = registered is not None and name in registered.builders
        if not (registered.takes(name, parameter) if registered and known else parameter in node):
            return []
        return [element] if parameter in node else [f"++{element}"]

    def _composed(self, master: DictConfig, elements: Iterable[str]) -> DictConfig:
        """The config of a job without the parameters of swept groups, and of its options alone."""
        options = tuple(each for each in elements if self._is_group(_key(each).removesuffix(".name").partition("@")[0]))
        if options not in self._nodes:
            self._nodes[options] = self._loader.load_sweep_config(master, list(options))
        return self._nodes[options]

    def _group_of(self, override: Override) -> str | None:
        """The group whose option has the parameter that `override` sets."""
        group, _, parameter = override.key_or_group.partition(".")
        sets = parameter and parameter != "name" and group != "hydra" and not override.is_delete()
        return group if sets and self._is_group(group) else None


def _key(element: str) -> str:
    """The key of an override without its prefix."""
    return element.lstrip("+~").partition("=")[0]
