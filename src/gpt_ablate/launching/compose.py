"""Hydra as this package uses it: where configs are, names of folders, and what cannot be composed in our words."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt_ablate.config import registry
from gpt_ablate.config.fingerprint import flatten
from gpt_ablate.config.paths import CONF
from gpt_ablate.launching import config_source, options
from gpt_ablate.studies.factors import as_folder, cell_name
from gpt_ablate.utils.errors import Problem, UsageError, closest

VERSION_BASE = "1.3"
config_source.install()
# Hydra checks conf/hydra/launcher/*.yaml against the plugins' own schemas, as is meant, but warns of doing so.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


@contextmanager
def opened(config_dir: str | None) -> Iterator[Hydra]:
    """Hydra over our configs and the user's `--config-dir`, as `hydra.main` sets it up. Raises UsageError."""
    hydra.version.setbase(VERSION_BASE)
    search_path = create_automatic_config_search_path(None, None, str(CONF))
    if config_dir is not None:
        folder = os.path.abspath(config_dir)
        if not os.path.isdir(folder):
            raise UsageError([Problem("--config-dir", config_dir, "a folder")])
        search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("gpt_ablate", search_path)
    finally:
        GlobalHydra.instance().clear()


@contextmanager
def composer(config_dir: str | None) -> Iterator[Hydra]:
    """`opened`, to compose configs with: what they hold amiss is raised as UsageError or HydraException."""
    try:
        with opened(config_dir) as found:
            yield found
    except UsageError:
        raise
    except ValueError as error:  # what Hydra's parser did not foresee, such as model=null
        raise HydraException(str(error)) from error
    except AttributeError as error:  # OmegaConf 2.3 on setting a null mapping, such as hydra.sweeper.params
        if (key := re.search(r"full_key: (\S+)", str(error))) is None:
            raise
        raise UsageError([Problem(key[1], None, "a key that the command line can set")]) from error


def composition_problem(error: Exception, overrides: list[str], config_dir: str | None) -> Problem:
    """What Hydra could not compose, in our form."""
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    if isinstance(error, RecursionError):
        return Problem("config", " ".join(overrides), "configs whose defaults do not name one another in a circle")
    message = str(error) or str(error.__cause__)
    if isinstance(error, OverrideParseException):
        return Problem("override", error.override, f"key=value in Hydra's syntax ({' '.join(error.message.split())})")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        options = sorted(error.options)
        return Problem(group, option, f"one of {', '.join(options)}", closest(option, options))
    if found := re.search(r"Could not override '([^'@]+)", message):
        key = found[1]
        if takers := _options_with(key, config_dir):
            told = f"a parameter of {', '.join(takers)} alone; in a sweep over options, those of them get it"
            return Problem(key, given.get(key), told)
        groups = [path.name for path in CONF.iterdir() if path.is_dir()]
        known = [*groups, *_known_keys()]
        near = closest(key, known)
        return Problem(key, given.get(key), "no such key (all of them: --help)", near)
    if "Config group override" in message:
        for group, option in given.items():
            options = sorted(path.stem for path in (CONF / group).glob("*.yaml")) if group else []
            if options and option not in options:
                return Problem(group, option, f"one of {', '.join(options)}")
        return Problem("override", " ".join(overrides), "key=value in Hydra's syntax")
    if found := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", message):
        return Problem(
            found[1], found[2], f"one value, or --multirun for each of them, or {found[1]}=[{found[2]}] for a list"
        )
    return Problem("config", " ".join(overrides), " ".join(message.split()))


def _options_with(key: str, config_dir: str | None) -> list[str]:
    """The options of a group, as overrides, whose files have the parameter `key`."""
    group, _, parameter = key.partition(".")
    try:
        with composer(config_dir) as opened:
            loader: Any = opened.config_loader
            options = loader.get_group_options(group) if parameter else []
            files = {option: loader.repository.load_config(f"{group}/{option}").config for option in options}
    except (UsageError, HydraException, OmegaConfBaseException):  # a file that is told of where it is chosen
        return []
    return [f"{group}={option}" for option, file in files.items() if parameter.partition(".")[0] in file]


def _known_keys() -> list[str]:
    with composer(None) as opened:
        composed = opened.config_loader.load_configuration("config", [], RunMode.RUN)
    plain = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(plain, dict)
    return list(flatten({str(k): v for k, v in plain.items() if k != "hydra"}))


def _cell_folder(*, _root_: DictConfig) -> str:
    """The name of a cell: the axes that are not at their default, and all of `cell_keys`."""
    chosen = options.names(_root_, _root_.hydra, Path(_root_.hydra.sweep.dir))
    axes = [str(key) for key in _root_ if key in registry.axis_names()]
    levels = {axis: chosen.get(axis, str(_root_[axis].name)) for axis in axes}
    levels |= {key: chosen.get(key, str(OmegaConf.select(_root_, key))) for key in _root_.cell_keys}
    return as_folder(cell_name(levels, axes, list(_root_.cell_keys)))


def _study_folder(default: str, *, _root_: DictConfig) -> str:
    """The study's name, or `default` where it has none."""
    return str(_root_.study or default)


_RESOLVERS: dict[str, Callable[..., Any]] = {"cell_folder": _cell_folder, "study_folder": _study_folder}
for _name, _resolver in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)
