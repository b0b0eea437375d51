#!/usr/bin/env bash
# etcd is without a quorum: nothing changes, also for agents that are started meanwhile, from their disk.
# etcd-gone.sh [SECONDS without etcd, default 60]
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
for=${1:-60}
begin
before=$(paths)
members=(dc1-etcd dc2-etcd witness)
stopped=()
undo() { local m; for m in "${stopped[@]}"; do lab start "$m"; done; }
for m in "${members[@]}"; do lab kill -s KILL "$m"; stopped+=("$m"); done
began=$SECONDS
kept "$for" "$before"
for node in $(hosts); do
  lab kill -s TERM "$node"
  lab start "$node"
  back() { [[ $(med "$node") ]]; }
  within 60 "$node does not announce without etcd" back || true
done
kept 0 "$before"
figure "without etcd for $((SECONDS - began)) s, with every agent restarted: $(meds "$SITE-edge")"
no_loss ask "without etcd"
for m in "${members[@]}"; do lab start "$m"; done
stopped=()
within 60 "etcd does not serve" etcd get /medway/v1/epoch >/dev/null
settle && figure "etcd again: $(meds "$SITE-edge")"
kept 0 "$before"
no_loss ask "with etcd again"
finish
