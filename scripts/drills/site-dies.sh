#!/usr/bin/env bash
# All LVS hosts of the target site die: the other site's routes take the traffic. They boot again with empty tables.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
begin
other=$(other_site)
mapfile -t all < <(hosts_of "$SITE")
dead=()
undo() { local n; for n in "${dead[@]}"; do lab power on "$n"; done; }
struck=$(now)
for node in "${all[@]}"; do lab power off "$node"; dead+=("$node"); done
moved() { [[ $(best transit) == "$other-edge" ]]; }
within 120 "transit's best path stayed on $(best transit)" moved && figure "transit's best path leads to $other after $(since "$struck"): $(meds transit)"
no_loss ask "without $SITE"
for node in "${all[@]}"; do lab power on "$node"; done
dead=()
# Automatic switchover, where the VIP has it, has made it official and put a lock; a person's order ends both.
figure "target $(target), $(value "locks/$NAME" | grep -c . || true) locks"
etcd del "/medway/v1/locks/$NAME" >/dev/null
[[ $(target) == "$SITE" ]] || put "target_state/$NAME" "$SITE"
struck=$(now)
# At the latest after the longest silence of a phone, 300 s, a host that lost its connection table serves again.
settle_within 400 && figure "$SITE serves again, $(since "$struck") after its hosts booted: $(meds transit)"
no_loss ask "with $SITE again"
finish
