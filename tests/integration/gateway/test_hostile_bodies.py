"""Attacks through the bodies of tasks and workers, on a running gateway: each is stopped, refused with its rule, and audited."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.gateway.world import World
from tests.security.attacks.registry import Attack, attacks


@pytest.mark.parametrize("attack", attacks(1, 2, 10, 16, 18), ids=str)
def test_attack_is_stopped(world: World, attack: Attack, tmp_path: Path) -> None:
    """The attack does no harm."""
    result = attack.run(world, tmp_path)
    assert result.stopped, f"{attack.name}: {result.harm}; answered {result.answer}"
