#!/usr/bin/env bash
# Runs medway-lab on the kernel that the lab is to use. In the virtual machine the programs are copied into its memory
# first: read over the shared folder, each start would take seconds.
set -euo pipefail
bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/../bin" && pwd -P)
if [[ ${MEDWAY_VM:-} ]]; then
  mkdir -p /run/medway-bin
  cp -fu "$bin"/* /run/medway-bin/
  bin=/run/medway-bin
fi
exec "$bin/medway-lab" "$@"
