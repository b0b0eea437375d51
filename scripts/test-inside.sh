#!/usr/bin/env bash
# Runs a test binary on the kernel that it needs; in the virtual machine it and the programs are copied into memory first.
set -euo pipefail
binary=$1
shift
if [[ ${MEDWAY_VM:-} ]]; then
  mkdir -p /run/medway-bin
  cp -fu "$MEDWAY_BIN"/* /run/medway-bin/
  cp "$binary" /run/medway-bin/
  binary=/run/medway-bin/$(basename "$binary")
  MEDWAY_BIN=/run/medway-bin
fi
exec "$binary" "$@"
