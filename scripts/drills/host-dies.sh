#!/usr/bin/env bash
# An LVS host dies, in silence: its switch port keeps its carrier. The router drops its route after BFD's time or the
# session's hold time, and the standby's route is already there. Then the host boots, with an empty connection table.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
begin
struck=$(now)
lab power off "$OWNER"
undo() { [[ -z ${dead:-} ]] || lab power on "$dead"; }
dead=$OWNER
gone() { [[ -z $(med "$OWNER") ]]; }
within 120 "$SITE-edge kept the dead host's route" gone && figure "$SITE-edge dropped $OWNER's route after $(since "$struck"): $(meds "$SITE-edge")"
within 120 "no other node took over" other_owner "$SITE" "$OWNER" && figure "$NEW owns the VIP after $(since "$struck"): $(meds "$SITE-edge")"
no_loss ask "without the host"
lab power on "$OWNER"
dead=
settle && figure "booted again: $(meds "$SITE-edge")"
no_loss ask "with it again"
finish
