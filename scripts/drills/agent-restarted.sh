#!/usr/bin/env bash
# An agent process is restarted: nothing that a call notices, and no other site's route is the best. agent-restarted.sh [TIMES]
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
times=${1:-3}
begin
for ((i = 1; i <= times; i++)); do
  lab kill -s TERM "$OWNER"
  lab start "$OWNER"
  settle || break
done
figure "$times restarts of $OWNER; $(owner "$SITE") owns the VIP: $(meds "$SITE-edge")"
no_loss ask "after the restarts"
[[ $(best transit) == "$SITE-edge" ]] || fault "transit's best path leads to $(best transit)"
finish
