#!/usr/bin/env bash
# Every test, with one summary line at the end. A virtual machine that this run booted is ended with it.
set -euo pipefail
PROG=test
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
mkdir -p "$OUT/test"
host_has_ipvs || end_machine_with_us
go build -o "$CACHE/medway-test" ./integration/cmd/medway-test
"$CACHE/medway-test"
