"""Config files as Hydra reads them, no larger than configs are: some bytes of YAML can stand for billions of values."""

from __future__ import annotations

import io
import os
from pathlib import Path

from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from yaml import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent, SafeLoader, YAMLError, parse

from gpt_ablate.utils import texts
from gpt_ablate.utils.errors import Problem, UsageError
from gpt_ablate.utils.files import content_of

MOST_BYTES, MOST_VALUES, DEEPEST = 1 << 20, 10_000, 50
"""Far above any config; within them, a config is read in a moment."""


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's files, each checked before OmegaConf, which copies what an alias names, builds its values.

    Hydra would take a byte order mark for a part of the first line. The name is that of Hydra's own class: where it
    registers that again, as in the processes of joblib, it leaves a class of the same name in place.
    """

    def load_config(self, config_path: str) -> ConfigResult:
        """The config in a file. Raises UsageError for one that is too large, nested too deeply, or no YAML in UTF-8."""
        file = Path(os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path))))
        if not os.path.lexists(file):
            return super().load_config(config_path)
        try:
            text = texts.decode(_content(file))
            _check(text, file)
            stream = io.StringIO(text)
            stream.name = str(file)  # for PyYAML's messages
            config, header = OmegaConf.load(stream), self._get_header_dict(text[:512])
        except UsageError:
            raise
        except (OSError, YAMLError, RecursionError) as error:
            told = f"a config in plain YAML ({' '.join(str(error).split())})"
            raise UsageError([Problem("config", str(file), told)]) from error
        except ValueError as error:
            raise UsageError([Problem("config", str(file), f"a config: {error}")]) from error
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", config, header)


def _content(file: Path) -> bytes:
    content = content_of(file)
    if len(content) > MOST_BYTES:
        told = f"a file of at most {MOST_BYTES:,} bytes, not {len(content):,}"
        raise UsageError([Problem("config", str(file), told)])
    return content


def _check(text: str, file: Path) -> None:
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    values = 0
    for event in parse(text, Loader=SafeLoader):
        if isinstance(event, AliasEvent):
            if event.anchor in (anchor for anchor, _ in open_nodes):
                raise UsageError([Problem("config", str(file), f"no alias in what it names (*{event.anchor})")])
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, NodeEvent):
            values += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if isinstance(event, CollectionStartEvent):
                open_nodes.append((event.anchor, values - 1))
        elif isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = values - before
        if values > MOST_VALUES:
            told = f"at most {MOST_VALUES:,} values, those that aliases stand for counted each time"
            raise UsageError([Problem("config", str(file), told)])
        if len(open_nodes) > DEEPEST:
            raise UsageError([Problem("config", str(file), f"at most {DEEPEST} levels of values in one another")])


def install() -> None:
    """Let Hydra read its files so, from wherever a config is searched."""
    Plugins.instance()  # which registers Hydra's own source
    SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource
