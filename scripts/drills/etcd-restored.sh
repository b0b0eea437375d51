#!/usr/bin/env bash
# etcd loses all members' data and is restored from a backup that is older than a switchover: nothing moves until every
# agent has joined, then what the backup says is in force.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
begin
other=$(other_site)
member=$(lab exec witness printenv ETCDCTL_ENDPOINTS | cut -d, -f1)
lab exec --as root witness env "ETCDCTL_ENDPOINTS=$member" etcdctl snapshot save "$WORK/backup.db" >/dev/null 2>&1
put "target_state/$NAME" "$other"
settle || true
before=$(paths)
record_end
mapfile -t members < <(awk '$2 == "etcd" { print $1 }' "$WORK/status")
address() { lab exec "$1" ip -br -4 address show scope global | awk 'NR == 1 { sub("/.*", "", $3); print $3 }'; }
cluster=$(for m in "${members[@]}"; do printf ',%s=https://%s:2380' "$m" "$(address "$m")"; done)
for m in "${members[@]}"; do lab kill -s KILL "$m"; done
for m in "${members[@]}"; do
  rm -rf "$LAB/etcd/$m"
  lab exec "$m" etcdutl snapshot restore "$WORK/backup.db" --bump-revision 1000000000 --mark-compacted --data-dir "$LAB/etcd/$m" \
    --name "$m" --initial-cluster "${cluster:1}" --initial-cluster-token medway-lab \
    --initial-advertise-peer-urls "https://$(address "$m"):2380" 2>>"$WORK/restore.log" || fault "$m: $(tail -1 "$WORK/restore.log")"
done
kept 0 "$before"
for m in "${members[@]}"; do lab start "$m"; done
within 60 "etcd does not serve" etcd get /medway/v1/target_state/ --prefix >/dev/null || true
joined() {
  local epoch node
  epoch=$(value epoch)
  [[ $epoch == 2-* ]] || return 1
  for node in $(hosts); do [[ $(value "joined/$node") == "$epoch" ]] || return 1; done
}
within 120 "not every node has joined: $(etcd get --prefix /medway/v1/joined/ | xargs)" joined && figure "restored: all nodes have joined epoch $(value epoch)"
settle && figure "the backup's target is in force: $(meds transit)"
[[ $(best transit) == "$SITE-edge" ]] || fault "transit's best path leads to $(best transit), the backup's target is $SITE"
no_loss ask "with etcd restored"
finish
