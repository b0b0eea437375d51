#!/usr/bin/env bash
# An agent process is killed: the standby's route is already there, the lease settles ownership, connections survive by sync.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
begin
struck=$(now)
lab kill -s KILL "$OWNER"
within 120 "no other node took over" other_owner "$SITE" "$OWNER" &&
  figure "$NEW in place of $OWNER after $(since "$struck"): $(meds "$SITE-edge")"
no_loss ask "without the agent"
lab start "$OWNER"
settle && figure "started again: $(meds "$SITE-edge")"
no_loss ask "with it again"
finish
