"""The champion of a registered model, as the ledger moves it: by the digest of its content."""

from __future__ import annotations

from unlearning.errors import ModelError
from unlearning.tracking.promotion import CHAMPION
from unlearning.tracking.registry import Registry


class Champion:
    """One registered model's champion.

    Args:
        registry: Where it is registered.
        name: The registered model.
    """

    def __init__(self, registry: Registry, name: str) -> None:
        self._registry, self._name = registry, name

    def digest(self) -> str:
        """Digest of the champion's bundle; "" when there is no champion, or others registered it without one."""
        try:
            return self._registry.version(self._name, CHAMPION).digest
        except ModelError:
            return ""

    def move(self, digest: str) -> None:
        """Makes the registered version with this digest the champion.

        Raises:
            ModelError: When no version has it.
        """
        version = self._registry.with_digest(self._name, digest)
        if version is None:
            raise ModelError(f'no version of "{self._name}" has the digest {digest[:12]}: register it first')
        self._registry.set_alias(self._name, CHAMPION, version.version)
