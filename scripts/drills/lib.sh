# shellcheck shell=bash
# Shared by the drills; sourced, never run. A drill does to a running lab what its row in docs/drills.md says, while
# calls are held, and prints one line: PASS or FAIL, with its figures.
#
# The lab is that of scripts/lab.sh up: two LVS hosts a site, and sessions that end in time for phones to wait for it.
# "--sabotage": messages of the connection sync are lost. A drill in which traffic moves must then FAIL.
PROG=$(basename "$0" .sh)
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
if [[ -z ${MEDWAY_VM:-} ]] && ! host_has_ipvs; then
  "$REPO/scripts/vm.sh" status >/dev/null 2>&1 || die "no lab is up: make lab"
  exec "$REPO/scripts/vm.sh" run -- "$(realpath "$0")" "$@"
fi

BIN=$REPO/bin
[[ -z ${MEDWAY_VM:-} ]] || BIN=/run/medway-bin      # where lab.sh up has put a copy
LAB=${MEDWAY_LAB:-/run/medway-lab}                  # the lab's run directory
VIP=203.0.113.10
NAME=sip-1
WORK=$(mktemp -d "/run/medway-drill-$PROG.XXXXXX")
SYNC_PORT=8848

lab() { "$BIN/medway-lab" --dir "$LAB" "$@"; }
etcd() { lab exec witness etcdctl --command-timeout=20s "$@"; }
lab status >"$WORK/status" || die "no lab is up: make lab"
hosts() { awk '$2 == "agent" { print $1 }' "$WORK/status"; }          # all LVS hosts, or one site's
hosts_of() { hosts | grep "^$1-"; }
(($(hosts | wc -l) >= 4)) || die "the lab has $(hosts | wc -l) LVS hosts, expected two a site: scripts/lab.sh up"

faults=() figures=()
fault() { faults+=("$*"); say "FAULT: $*"; }
figure() { figures+=("$*"); say "$*"; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1fs", b - a }'; }

# within SECONDS WHAT CMD...: tries until it succeeds; else WHAT is a fault.
within() {
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    if ((SECONDS >= limit)); then fault "$what"; return 1; fi
    sleep 0.5
  done
}

value() { etcd get --print-value-only "/medway/v1/$1"; }
put() { say "etcdctl put /medway/v1/$1 $2"; etcd put "/medway/v1/$1" -- "$2" >/dev/null; }
owner() { value "owners/$1/$NAME" | sed -n 's/.*"node": *"\([^"]*\)".*/\1/p'; }
target() { value "target_state/$NAME"; }

# routes ROUTER: "SESSION MED" of each route that it holds for the VIP, the best one first.
routes() {
  birdc -s "$LAB/$1/bird.ctl" show route all "$VIP/32" |
    awk '/unicast \[/ { sub(/.*unicast \[/, ""); session = $1 } /BGP.med:/ { print session, $2 }'
}
# med NODE: what its edge router hears from it; nothing where there is no route.
med() { routes "${1%%-*}-edge" | awk -v s="$1" '$1 == s { print $2 }'; }
best() { routes "$1" | awk 'NR == 1 { print $1 }'; }
meds() { routes "$1" | awk '{ printf "%s%s=%s", (NR > 1 ? "," : ""), $1, $2 }'; }

# active NODE: it owns the VIP and its route is at the line or below.
active() {
  local m
  [[ $(owner "${1%%-*}") == "$1" ]] || return 1
  m=$(med "$1")
  [[ $m ]] && ((m <= 100))
}
other_owner() { # other_owner SITE OLD: sets NEW
  NEW=$(owner "$1")
  [[ $NEW && $NEW != "$2" ]] && active "$NEW"
}
# settled: the target site's owner announces 100, every other LVS host more.
settled() {
  local site active node m
  site=$(target) active=$(owner "$site")
  [[ $active ]] || return 1
  for node in $(hosts); do
    m=$(med "$node")
    if [[ $node == "$active" ]]; then [[ $m == 100 ]] || return 1; else [[ $m ]] && ((m > 100)) || return 1; fi
  done
}
other_site() { if [[ $SITE == dc1 ]]; then echo dc2; else echo dc1; fi; }
routers() { awk '$2 == "bird" { print $1 }' "$WORK/status"; }
paths() { local r; for r in $(routers); do printf '%s:%s ' "$r" "$(best "$r")"; done; }
kept() { # kept SECONDS PATHS: they stay the best ones; looks all the time, and once at least
  local end=$((SECONDS + $1)) now
  until now=$(paths); [[ $now != "$2" ]] || ((SECONDS >= end)); do sleep 1; done
  [[ $now == "$2" ]] || fault "best paths became $now, before: $2"
}
settle_within() { # settle_within SECONDS
  within "$1" "not settled after $1 s" settled || { fault "dc1-edge $(meds dc1-edge); dc2-edge $(meds dc2-edge)"; return 1; }
}
settle() { settle_within 120; }

# Calls, held in the background: see medway-lab calls --help.
calls_up() {
  coproc CALLS { exec "$BIN/medway-lab" --dir "$LAB" calls --out "$WORK/calls" 2>"$WORK/calls.err"; }
  # shellcheck disable=SC2153  # coproc sets it
  calls_pid=$CALLS_PID
  exec {calls_in}>&"${CALLS[1]}" {calls_out}<&"${CALLS[0]}"
  local line
  if ! read -r -t 180 line <&"$calls_out"; then cat "$WORK/calls.err" >&2; die "no calls were established"; fi
  say "calls: $line"
}
tell() { # tell WORD: sets REPLY
  echo "$1" >&"$calls_in"
  read -r -t 180 REPLY <&"$calls_out" || { REPLY="no answer: $(cat "$WORK/calls.err")"; return 1; }
}
no_loss() { # no_loss ask|end WHEN
  tell "$1" || true
  figure "$2: $REPLY"
  if [[ $REPLY != *" lost=0 strayed=0 "* ]]; then
    fault "calls were lost, $2"
    cat "$WORK/calls.err" >&2
  fi
}
new_calls_in() { # new_calls_in SITE
  tell new || true
  figure "new calls: $REPLY"
  [[ $REPLY == "$1-"* && $REPLY != *error* ]] || fault "new calls did not all go to $1"
}
calls_end() {
  no_loss end "at the end"
  exec {calls_in}>&-
  wait "$calls_pid" || true     # its status says what no_loss has said
  calls_pid=
}

# sync_lost -I|-D: what the LVS hosts tell each other of connections is lost, or not.
sync_lost() {
  local node
  for node in $(hosts); do lab exec "$node" iptables -w -t raw "$1" OUTPUT -p udp --dport "$SYNC_PORT" -j DROP; done
}

cleanup() {
  [[ -z ${calls_pid:-} ]] || kill "$calls_pid" 2>/dev/null || true
  [[ -z ${record_pid:-} ]] || kill "$record_pid" 2>/dev/null || true
  [[ -z $sabotage ]] || sync_lost -D || true
  if declare -F undo >/dev/null; then undo || true; fi
}

record_begin() {
  "$BIN/medway-lab" --dir "$LAB" promises record "$WORK/history" &
  record_pid=$!
}
record_end() { # judges what was recorded
  kill -INT "$record_pid"
  wait "$record_pid" || true
  record_pid=
  if ! lab promises check "$WORK/history" >"$WORK/promises" 2>"$WORK/promises.err"; then
    fault "$(tail -n +2 "$WORK/promises" | head -1) $(cat "$WORK/promises.err")"
  fi
  cat "$WORK/promises" >&2
  figure "$(head -1 "$WORK/promises")"
}

# begin: a lab at rest, with calls up and what is needed to judge it.
begin() {
  settle || die "the lab is not at rest to begin with"
  record_begin
  if [[ $sabotage ]]; then say "SABOTAGE: sync messages are lost"; sync_lost -I; fi
  calls_up
  SITE=$(target)
  OWNER=$(owner "$SITE")
  say "$OWNER owns the VIP in the target site"
}

# finish: the calls' end, the promises, and the one line.
finish() {
  local verdict=PASS line
  if [[ ${calls_pid:-} ]]; then calls_end; fi
  if [[ $record_pid ]]; then record_end; fi
  line=$(printf '; %s' "${figures[@]}")
  if ((${#faults[@]})); then verdict=FAIL line+=$(printf '; FAULT %s' "${faults[@]}"); fi
  printf '%s %s: %s\n' "$verdict" "$PROG" "${line:2}"
  rm -rf "$WORK"
  [[ $verdict == PASS ]]
}

sabotage=
if [[ ${1:-} == --sabotage ]]; then sabotage=1; shift; fi
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
