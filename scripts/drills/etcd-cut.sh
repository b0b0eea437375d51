#!/usr/bin/env bash
# The target site's LVS hosts are cut from etcd, and from nothing else: they keep their routes. A person's switchover wins
# over them by a lower MED; when they see etcd again, MEDs are the usual ones.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
begin
other=$(other_site)
before=$(paths)
cut=()
undo() { local n; for n in "${cut[@]}"; do lab mend "$n" etcd; done; cut=(); }
for node in $(hosts_of "$SITE"); do lab cut "$node" etcd; cut+=("$node"); done
no_owner() { [[ -z $(owner "$SITE") ]]; }
within 90 "the lease of $OWNER did not run out" no_owner || true
kept 0 "$before"
[[ $(med "$OWNER") == 100 ]] || fault "$OWNER announces $(med "$OWNER"), expected 100"
struck=$(now)
put "target_state/$NAME" "$other"
won() { [[ $(best transit) == "$other-edge" ]]; }
within 90 "the switchover did not win" won && figure "switched to $other in $(since "$struck"), $SITE cut from etcd: $(meds transit)"
[[ $(med "$OWNER") == 100 ]] || fault "$OWNER announces $(med "$OWNER"), expected 100: it can't know of the switchover"
no_loss ask "switched"
undo
settle && figure "mended: $(meds transit)"
put "target_state/$NAME" "$SITE"
settle && figure "$SITE again: $(meds transit)"
no_loss ask "back in $SITE"
finish
