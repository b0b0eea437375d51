#!/usr/bin/env bash
# Every test, with one summary line at the end. A virtual machine that this run booted is ended with it.
set -euo pipefail
PROG=test
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
mkdir -p "$OUT/test"
if ! host_has_ipvs && ! scripts/vm.sh status >/dev/null 2>&1; then trap 'scripts/vm.sh down 2>/dev/null' EXIT; fi # quiet: the summary is the last line
go build -o "$CACHE/medway-test" ./integration/cmd/medway-test
"$CACHE/medway-test"
