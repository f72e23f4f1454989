"""Seals: digests of files that tools make, written anew after a change was reviewed."""

from __future__ import annotations

import hashlib
import re

from airbridge.ci.checkout import Checkout
from airbridge.ci.parity.inventory import registry


def renew(checkout: Checkout) -> list[str]:
    """Write the digests of the sealed files into the inventory; return the files whose digest changed."""
    source = checkout.source(registry.FILE)
    text, changed = source.text, []
    for path, sealed in registry.parse(source.text).seal.items():
        digest = hashlib.sha256(checkout.source(path).text.encode()).hexdigest()
        if digest != sealed:
            text = re.sub(
                rf'^("{re.escape(path)}" = )"[0-9a-f]*"$', rf'\1"{digest}"', text, flags=re.MULTILINE
            )
            changed.append(path)
    if changed:
        (checkout.root / registry.FILE).write_text(text, encoding="utf-8")
    return changed
