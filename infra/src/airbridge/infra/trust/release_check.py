"""Verification of the worker's image on its instance, before the first byte of it is pulled and at every start.

The instance has openssl and no cosign. Its user data brings the bytes of the release that are signed, the signature, and the
public key; an image runs only if that signature holds and the signed release names its digest. ADR 0015 says against what
this protects, and against what it cannot.
"""

from __future__ import annotations

import base64
from string import Template

from airbridge.infra.trust.releases import SignedRelease

PROGRAM = "/usr/local/bin/airbridge-verify"

_SCRIPT = Template(r"""cat > /etc/airbridge/release <<'END'
$content
END
# Signed are the bytes without the last line's end.
truncate -s -1 /etc/airbridge/release
echo '$signature' | base64 -d > /etc/airbridge/release.sig
cat > /etc/airbridge/release.pub <<'END'
$public_key
END
cat > /usr/local/bin/airbridge-verify <<'END'
#!/bin/bash
# Refuses an image that the signed release does not name: airbridge-verify REGISTRY/NAME@DIGEST
set -euo pipefail
folder=$${AIRBRIDGE_TRUST:-/etc/airbridge}
name=$${1##*/} digest=$${1#*@}
refuse() {
  echo "airbridge: $$1: $${name%@*}@$$digest is not run" >&2
  exit 1
}
openssl pkeyutl -verify -pubin -inkey $$folder/release.pub -rawin -in $$folder/release -sigfile $$folder/release.sig >/dev/null 2>&1 \
  || refuse "the release is not signed by $kid"
[ "$$(openssl pkey -pubin -in $$folder/release.pub -outform DER | tail -c 32 | sha256sum | cut -c 1-16)" = $kid ] \
  || refuse "the key is not $kid"
grep -qE "\"$${name%@*}\":\{(\"base\":\"sha256:[0-9a-f]{64}\",)?\"digest\":\"$$digest\"" $$folder/release \
  || refuse "the signed release has no such image"
END
chmod 0755 /usr/local/bin/airbridge-verify""")


def install(release: SignedRelease | None) -> str:
    """Return the part of user data that installs release, signature, key and the program that verifies them."""
    if release is None:
        return "# No release yet: there is no signature that would be verified here."
    return _SCRIPT.substitute(
        content=release.content,
        signature=base64.b64encode(release.signature).decode(),
        public_key=release.public_key.strip(),
        kid=release.kid,
    )


def start_condition(release: SignedRelease | None, image: str) -> str:
    """Return the line of the worker's unit that verifies its image before it is pulled."""
    return f"ExecStartPre={PROGRAM} {image}" if release else "# No release yet: the image is not verified."
