"""Parts of the wire protocol that stand by themselves; `airbridge.core.protocol` says how they may change."""
