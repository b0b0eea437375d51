#!/usr/bin/env bash
# The lab for a person: lab.sh up|shell NODE [CMD...]|console|status|down, and what breaks it: kill|start|power|cut|mend ...
set -euo pipefail
PROG=lab
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

inside=$REPO/scripts/lab-inside.sh
vm_is_up() { "$REPO/scripts/vm.sh" status >/dev/null 2>&1; }
is_built() { [[ -x $REPO/bin/medway-lab ]]; }
# What only looks at a lab must not boot a machine for it.
running() {
  if ! is_built || ! { host_has_ipvs || vm_is_up; }; then die "no lab is up: make lab"; fi
}

case ${1:-} in
  up)
    shift
    rm -f "$BORROWED"   # the machine is to stay
    "$REPO/scripts/with-kernel.sh" "$inside" up --wan-delay 5ms "$@"
    cat <<'TEXT'

The lab is up. Look inside:
  make lab-console                    two coordinators, and their console for your browser: press the button
  make lab-status                     daemons, BGP sessions, routes
  make lab-shell NODE=dc1-lvs-a       a shell on a node; also dc1-lvs-b, dc2-lvs-a, dc2-lvs-b, dc1-edge, dc2-edge,
                                      transit, clients, transit2, clients2 (a provider that ignores MEDs),
                                      dc1-sbc1 ... dc2-sbc2, dc1-etcd, dc2-etcd, witness
On the witness:     medwayctl status
                    etcdctl put /medway/v1/target_state/sip-1 dc2
                    (straight on etcd, as the operator; scripts/lab.sh shell --as dc1-lvs-a witness is as that node, also root, viewer)
On an LVS host:     ipvsadm -ln; ipvsadm -lnc; iptables -t mangle -S; ip -d link; tail /run/medway-lab/dc1-lvs-a/agent.log
                    medway-agent status -c /run/medway-lab/dc1-lvs-a/agent.yaml (also plan, withdraw sip-1, resume sip-1)
On an edge router:  birdc -s /run/medway-lab/dc1-edge/bird.ctl show route all
On the clients:     sipp ..., or: sbc idle 203.0.113.10:5060 -n 20 --every 5s   (IPv6: [2001:db8:10::10]:5060)
Break things:       scripts/lab.sh power off dc1-lvs-a (power on; kill -s KILL, start: its agent; cut, mend: docs/drills.md)
                    A lease lasts 15 s here, and a host that dies in silence is missed after 9 s, without BFD (--bfd 1s):
                    an emulated processor can't keep BFD's own pace.
When done:          make lab-down
TEXT
    ;;
  shell)
    shift
    (($# > 0)) || die "which node? make lab-shell NODE=dc1-lvs-a"
    running
    if host_has_ipvs; then exec "$inside" shell "$@"; fi
    exec "$REPO/scripts/vm.sh" shell "$inside" shell "$@"
    ;;
  console)
    running
    if ! host_has_ipvs; then "$REPO/scripts/vm.sh" forward 127.0.0.1:9443:127.0.0.1:9443; fi
    exec "$REPO/scripts/with-kernel.sh" "$inside" console
    ;;
  status)
    running
    exec "$REPO/scripts/with-kernel.sh" "$inside" status
    ;;
  kill | start | power | cut | mend)
    running
    exec "$REPO/scripts/with-kernel.sh" "$inside" "$@"
    ;;
  down)
    if ! host_has_ipvs; then exec "$REPO/scripts/vm.sh" down; fi
    is_built || { say "was not up"; exit 0; }   # make clean, in a clone where nothing was built
    exec "$inside" down
    ;;
  *) die "usage: lab.sh up|shell NODE [CMD...]|console|status|kill|start|power|cut|mend ...|down" ;;
esac
