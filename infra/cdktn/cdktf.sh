#!/bin/sh
# `cdktf` where cdktn was chosen (CDK of infra/infra.mk): the same commands and options, on a Node.js that cdktn runs on.
modules=$(dirname "$(readlink -f "$0")")/node_modules
for bin in "$modules"/node-*/bin; do
  [ ! -x "$bin/node" ] || PATH=$bin:$PATH
done
export PATH
exec "$modules/.bin/cdktn" "$@"
