#!/usr/bin/env bash
# The disks of all etcd members are slow: nothing moves by itself, and an order takes longer. strace(1) delays what they write.
# etcd-slow.sh [MILLISECONDS a write, default 500] [SECONDS, default 60]
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
delay=${1:-500} for=${2:-60}
have strace || die "there is no strace(1): scripts/setup.sh installs it"
begin
other=$(other_site)
before=$(paths)
tracers=()
undo() { ((${#tracers[@]} == 0)) || kill "${tracers[@]}" 2>/dev/null || true; tracers=(); }
while read -r member _ pid _; do
  files=()
  for file in "$LAB/etcd/$member"/member/wal/* "$LAB/etcd/$member"/member/snap/db; do files+=(-P "$file"); done
  strace -f -qq -o /dev/null "${files[@]}" -e trace=write,pwrite64 -e "inject=write,pwrite64:delay_exit=$((delay * 1000))" -p "$pid" &
  tracers+=($!)
done < <(awk '$2 == "etcd"' "$WORK/status")
as_slow() { # a write takes as long as it should by now
  local began=${EPOCHREALTIME/./}
  etcd put /medway/drill slow >/dev/null && ((${EPOCHREALTIME/./} - began >= delay * 1000))
}
within 60 "writes to etcd do not take $delay ms" as_slow || true
kept "$for" "$before"
figure "for $for s with $delay ms a write: $(meds "$SITE-edge")"
no_loss ask "with slow disks"
struck=$(now)
put "target_state/$NAME" "$other"
won() { [[ $(best transit) == "$other-edge" ]]; }
within 120 "the switchover did not win: $(meds transit)" won && figure "switched to $other in $(since "$struck"): $(meds transit)"
no_loss ask "after a switchover with slow disks"
undo
put "target_state/$NAME" "$SITE"
settle && figure "fast again, and $SITE the target: $(meds "$SITE-edge")"
etcd del /medway/drill >/dev/null
finish
