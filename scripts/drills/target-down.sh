#!/usr/bin/env bash
# A target is put to a site that can't serve: the serving site goes on serving, and shows what it waits for.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
begin
other=$(other_site)
mapfile -t all < <(hosts_of "$other")
dead=()
undo() { local n; for n in "${dead[@]}"; do lab power on "$n"; done; }
for node in "${all[@]}"; do lab power off "$node"; dead+=("$node"); done
silent() { [[ -z $(owner "$other") ]]; }
within 90 "the leases of $other did not run out" silent || true
put "target_state/$NAME" "$other"
waits() { lab exec witness medwayctl --command-timeout=20s status >"$WORK/medwayctl"; grep -q "waits for a node of $other" "$WORK/medwayctl"; }
within 60 "medwayctl status does not say that $SITE waits for $other" waits && figure "status: $(grep -o "waits for a node of $other" "$WORK/medwayctl" | head -1)"
[[ $(med "$OWNER") == 100 ]] || fault "$OWNER announces $(med "$OWNER"), expected 100"
no_loss ask "with the target at a dead $other"
put "target_state/$NAME" "$SITE"
for node in "${all[@]}"; do lab power on "$node"; done
dead=()
settle && figure "$other again, target $SITE: $(meds transit)"
no_loss ask "with $other again"
finish
