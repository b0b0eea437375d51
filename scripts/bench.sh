#!/usr/bin/env bash
# Measures medway (docs/benchmarks.md) and prints the report, which is also left in .cache/out/bench.
# bench.sh [native|failover|kernel|load] [flags of medway-bench ...]: only one part. The last runs only when it is named.
set -euo pipefail
PROG=bench
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
((EUID == 0)) || die "not root: network namespaces are needed, so run this as root"

parts=(native failover kernel)
if (($# > 0)) && [[ $1 != -* ]]; then parts=("$1"); shift; fi
results=$OUT/bench
mkdir -p "$results"
# A network of its own, and all that is started in it ends with it.
alone=(unshare --net --pid --fork --kill-child --mount-proc)
failed=0
for part in "${parts[@]}"; do
  rm -f "$results/$part.json"
  case $part in
    native | failover | load) "${alone[@]}" bin/medway-bench "$part" --out "$results" "$@" || failed=1 ;;
    kernel)
      if ! host_has_ipvs && ! scripts/vm.sh status >/dev/null 2>&1; then trap 'scripts/vm.sh down' EXIT; fi
      MEDWAY_BIN=$REPO/bin scripts/with-kernel.sh "${alone[@]}" scripts/test-inside.sh bin/medway-bench kernel --out "$results" "$@" </dev/null || failed=1 ;;
    *) die "unknown part $part: expected native, failover, kernel or load" ;;
  esac
done
bin/medway-bench report --out "$results"
say "the report is in $results/report.txt and .json"
exit "$failed"
