"""Parts of the wire protocol that stand by themselves; `airbridge.core.protocol` has the rules of their changes."""
