#!/usr/bin/env bash
# Bad values are put with etcdctl: they are ignored, the last good ones stay, and each is shown as a fault.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
begin
before="$(meds dc1-edge) $(meds dc2-edge)"
declare -A good
undo() { local k; for k in "${!good[@]}"; do etcd put "/medway/v1/$k" -- "${good[$k]}" >/dev/null; done; }
shown() { lab exec witness medwayctl --command-timeout=20s status >"$WORK/medwayctl"; grep -qF "$1" "$WORK/medwayctl"; }
for bad in "target_state/$NAME mars" "vips/$NAME {" 'pools/sbc {"weights":{"local":"many"}}' 'settings nothing'; do
  key=${bad%% *}
  good[$key]=$(value "$key")
  put "$key" "${bad#* }"
  within 60 "medwayctl status does not show $key" shown "/medway/v1/$key" || true
done
figure "${#good[@]} bad values, all shown"
after="$(meds dc1-edge) $(meds dc2-edge)"
[[ $after == "$before" ]] || fault "MEDs became $after, before: $before"
services() { lab exec "$OWNER" ipvsadm -Sn | grep -c -- "-r "; }
n=$(services)
((n > 0)) || fault "$OWNER has no destination left"
figure "$OWNER has $n destinations: $(meds "$SITE-edge")"
no_loss ask "with bad values"
undo
good=()
settle || true
no_loss ask "with good ones again"
finish
