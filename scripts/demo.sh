#!/usr/bin/env bash
# The demo: live calls, one etcdctl put, and the proof. Arguments go to `medway-lab demo`.
set -euo pipefail
PROG=demo
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=$OUT/demo
rm -rf "$out"
mkdir -p "$out"
if host_has_ipvs; then
  say "this kernel has IPVS: the lab runs on it, in network namespaces"
else
  say "this kernel has no IPVS: the lab runs in a small virtual machine"
  end_machine_with_us
fi

status=0
"$REPO/scripts/with-kernel.sh" "$REPO/scripts/lab-inside.sh" demo --out "$out" "$@" || status=$?
if [[ -s $out/switchover.svg ]]; then
  rsvg-convert -o "$out/switchover.png" "$out/switchover.svg"
  say "picture: ${out#"$PWD"/}/switchover.svg and .png; report: report.txt beside it"
fi
say "with a button in a browser: make lab, then make lab-console"
exit "$status"
