#!/usr/bin/env bash
# etcd is without a quorum: nothing changes, also for agents that are started meanwhile, from their disk.
# etcd-gone.sh [SECONDS without etcd, default 60]
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
for=${1:-60}
begin
paths() { echo "transit:$(best transit) dc1-edge:$(best dc1-edge) dc2-edge:$(best dc2-edge)"; }
before=$(paths)
members=(dc1-etcd dc2-etcd witness)
stopped=()
undo() { local m; for m in "${stopped[@]}"; do lab start "$m"; done; }
for m in "${members[@]}"; do lab kill -s KILL "$m"; stopped+=("$m"); done
began=$SECONDS
kept() { # looks all the time, and once at least
  until now=$(paths); [[ $now != "$before" ]] || ((SECONDS - began >= for)); do sleep 1; done
  [[ $now == "$before" ]] || fault "best paths became $now, before: $before"
}
kept
for node in $(hosts); do
  lab kill -s TERM "$node"
  lab start "$node"
  back() { [[ $(med "$node") ]]; }
  within 60 "$node does not announce without etcd" back || true
done
now=$(paths)
[[ $now == "$before" ]] || fault "with agents started meanwhile best paths became $now, before: $before"
figure "without etcd for $((SECONDS - began)) s, with every agent restarted: $(meds "$SITE-edge")"
no_loss ask "without etcd"
for m in "${members[@]}"; do lab start "$m"; done
stopped=()
within 60 "etcd does not serve" etcd get /medway/v1/epoch >/dev/null
settle && figure "etcd again: $(meds "$SITE-edge")"
now=$(paths)
[[ $now == "$before" ]] || fault "best paths became $now, before: $before"
no_loss ask "with etcd again"
finish
