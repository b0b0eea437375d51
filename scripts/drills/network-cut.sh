#!/usr/bin/env bash
# The network between the sites is cut, in silence, and the target site has no quorum: each side keeps its MEDs. A switchover
# made on the side with quorum wins by a lower MED; when the network is back, MEDs are the usual ones.
set -euo pipefail
# shellcheck source=scripts/drills/lib.sh
source "$(dirname "$0")/lib.sh"
begin
other=$(other_site)
network() { # network cut|mend
  lab "$1" --silent "$SITE-edge" "$other-edge"
  lab "$1" --silent "$SITE-edge" witness
}
undo() { [[ -z ${is_cut:-} ]] || network mend; }
before="$(med "$OWNER") $(med "$(owner "$other")")"
backup=$(owner "$other")
network cut
is_cut=1
no_owner() { [[ -z $(owner "$SITE") ]]; }
within 90 "the lease of $OWNER did not run out where there is a quorum" no_owner || true
after="$(med "$OWNER") $(med "$backup")"
figure "cut: $(meds transit)"
[[ $after == "$before" ]] || fault "MEDs became $after, before: $before"
# Calls that were made in the old site can't outlive a switch to one that doesn't reach its backends.
calls_end
put "target_state/$NAME" "$other"
won() { [[ $(best transit) == "$other-edge" ]]; }
within 90 "the switchover did not win: $(meds transit)" won && figure "switched on the side with quorum: $(meds transit)"
network mend
is_cut=
settle && figure "mended: $(meds transit)"
calls_up
new_calls_in "$other"
put "target_state/$NAME" "$SITE"
settle && figure "$SITE again: $(meds transit)"
no_loss ask "back in $SITE"
finish
