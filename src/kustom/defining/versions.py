"""Versions of a part's settings: a file of an older version is migrated, one of a newer version refused.

The version stands in the config, where Keras's own loader meets it too, unless it is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kustom.errors import ConfigError, DefinitionError, VersionError

__all__ = ["KEY", "Versions"]

KEY = "settings_version"


@dataclass(frozen=True)
class Versions:
    """The version of a part's settings, and how older ones become those of now.

    Args:
        version: From 1 on.
        migrate: `migrate(config, version)` returns the config that this version would have written.

    Raises:
        DefinitionError: The version is no whole number from 1 on, or greater than 1 without `migrate`.
    """

    version: int = 1
    migrate: Callable[[dict[str, Any], int], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.version, int) or isinstance(self.version, bool) or self.version < 1:
            raise DefinitionError(f"version= is a whole number from 1 on, not {self.version!r}.")
        if self.version > 1 and self.migrate is None:
            raise DefinitionError(
                f"version={self.version} needs migrate=, a function of (config, version) that turns older settings into these."
            )

    def stamp(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config with its version, where that is not 1."""
        return config if self.version == 1 else {**config, KEY: self.version}

    def upgrade(self, config: dict[str, Any], owner: str) -> dict[str, Any]:
        """A copy of the config without its version, as this version would have written it.

        Raises:
            VersionError: A newer version wrote it.
            ConfigError: `migrate` returned something else than a dict.
        """
        config = dict(config)
        version = config.pop(KEY, 1)
        if version > self.version:
            raise VersionError(
                f"the config of {owner} is of version {version}; this {owner} reads up to {self.version}. "
                "Install the version of its package that wrote the file."
            )
        if version < self.version:
            assert self.migrate is not None
            config = self.migrate(config, version)
            if not isinstance(config, dict):
                raise ConfigError(f"migrate= of {owner} returned {type(config).__name__}, where a config (a dict) was expected.")
        return config
