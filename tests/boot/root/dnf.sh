#!/bin/sh
# `dnf install -y awscli`: the AWS command line is in this root already.
[ "$*" = "install -y awscli" ] && command -v aws >/dev/null
