#!/usr/bin/env bash
# Every drill, one after the other, in a lab of its own, and one that must fail; the report is left in .cache/out/drills.
# all.sh [NAME...]: only these.
set -euo pipefail
PROG=drills
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
cd "$REPO"
# In the order of docs/drills.md.
drills=(agent-restarted agent-killed host-dies site-dies etcd-gone etcd-slow etcd-restored etcd-cut network-cut target-down clock-steps bad-value)
if (($# > 0)); then drills=("$@"); fi
results=$OUT/drills
report=$results/report.txt
mkdir -p "$results"
rm -f "$results"/*
if ! host_has_ipvs && scripts/vm.sh status >/dev/null 2>&1; then die "a virtual machine is up, perhaps with somebody's lab: end it first (make lab-down)"; fi
trap 'scripts/lab.sh down' EXIT
scripts/lab.sh up >"$results/lab.log" || die "the lab did not come up: $results/lab.log"

failed=0
run() { # run LOG DRILL [ARGS...]: sets line
  local log=$results/$1.log drill=$2
  shift 2
  say "$drill $*"
  "scripts/drills/$drill.sh" "$@" >"$log.line" 2>"$log" </dev/null || true
  line=$(grep -E '^(PASS|FAIL) ' "$log.line" || echo "FAIL $drill: it did not come to its end: $(tail -1 "$log")")
  rm -f "$log.line"
}
{
  echo "Drills of $(date -u +%FT%TZ), $(git describe --always --dirty), two LVS hosts a site"
  echo
} >"$report"
for drill in "${drills[@]}"; do
  run "$drill" "$drill"
  [[ $line == PASS* ]] || failed=1
  echo "$line" | tee -a "$report"
done
# A proof that can't fail proves nothing.
run sabotaged host-dies --sabotage
if [[ $line == "FAIL "*"calls were lost"* ]]; then
  line="PASS sabotaged: host-dies fails where sync messages are lost: ${line#FAIL }"
else
  failed=1 line="FAIL sabotaged: host-dies does not fail for lost calls where sync messages are lost: $line"
fi
echo "$line" | tee -a "$report"
say "the report is in $report, what each drill did beside it"
exit "$failed"
