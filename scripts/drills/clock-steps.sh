#!/usr/bin/env bash
# The clocks of all hosts are set by an hour, forwards and then back: nothing moves; ownership and switchovers work as before.
# It sets the clock of the machine it runs on, so only in the lab's virtual machine.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
[[ ${MEDWAY_VM:-} ]] || die "it would set this machine's clock: run it where the lab is in a virtual machine"
begin
other=$(other_site)
behind=0
step() { # step SECONDS
  date -s "@$(($(date +%s) + $1))" >/dev/null
  behind=$((behind - $1))
  # A line in each router's log: by it a reader knows of the step.
  for router in $(routers); do birdc -s "$LAB/$router/bird.ctl" configure >/dev/null; done
}
undo() { ((behind == 0)) || step "$behind"; }
trial() { # trial WHEN
  local when=$1 struck old
  before=$(paths)
  kept 20 "$before" # more than a lease lasts
  [[ $(owner "$SITE") == "$OWNER" ]] || fault "$when: $(owner "$SITE") owns the VIP, before: $OWNER"
  struck=$(now) old=$OWNER
  lab kill -s KILL "$old"
  within 120 "$when: no other node took over from $old" other_owner "$SITE" "$old" && figure "$when: $NEW took over from $old in $(since "$struck")"
  lab start "$old"
  settle || true
  put "target_state/$NAME" "$other"
  settle || true
  put "target_state/$NAME" "$SITE"
  settle && figure "there and back again: $(meds transit)"
  no_loss ask "$when"
  OWNER=$(owner "$SITE")
}
for by in 3600 -7200; do
  record_end
  step "$by"
  record_begin
  trial "clocks $((-behind / 3600)) h ahead"
done
record_end
step "$behind"
record_begin
settle && figure "clocks right: $(meds "$SITE-edge")"
finish
