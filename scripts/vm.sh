#!/usr/bin/env bash
# One virtual machine per clone, with a kernel that has IPVS and with this host's / as its root (read-only; what
# is written there stays in the machine's memory). /tmp, /run and /dev/shm are the machine's own. The clone is
# seen as it is now, read-only; .cache/out is shared and writable, at the same path inside as outside.
#
#   vm.sh up                                 boot, unless it is up
#   vm.sh run [-e NAME[=VALUE]]... -- CMD    run CMD as root in this directory; its output, its exit status; boots if down
#   vm.sh shell [CMD...]                     the same with a terminal; a login shell without CMD
#   vm.sh forward [HOST:]PORT:ADDR:PORT      127.0.0.1:PORT here leads to ADDR:PORT in there (as ssh -L)
#   vm.sh status                             exit 0 if up, 3 if not
#   vm.sh down
#
# Environment: MEDWAY_VM_MEM (MiB, 6144), MEDWAY_VM_CPUS (2), MEDWAY_VM_BOOT_TIMEOUT (s, 180), MEDWAY_VM_KVM=0 (never KVM),
# MEDWAY_CACHE (folder for the kernel and the state, .cache in the clone).
set -euo pipefail
PROG=vm
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VM=$CACHE/vm
CTL=$VM/ctl               # what the machine itself gets to read; the client's private key is not in it
NET=100.127.254           # shared address space (RFC 6598), unlikely in anyone's lab
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

# quote WORD...: for a POSIX shell (printf %q may write $'...', which is only bash's).
quote() { local w; for w in "$@"; do printf " '%s'" "${w//\'/\'\\\'\'}"; done; }

# The process in the pid file, if it is still our QEMU: the number may have been given to another since.
qemu_pid() {
  local pid
  pid=$(cat "$VM/pid" 2>/dev/null) && [[ $pid ]] || return 1
  grep -qzxF "medway-vm:$VM" "/proc/$pid/cmdline" 2>/dev/null || return 1
  echo "$pid"
}

# Runs a command that outlives us with none of our file descriptors: a caller that reads our output to its end
# would otherwise wait for the machine, and the lock would stay locked.
detached() (
  local fd
  for fd in /proc/"$BASHPID"/fd/*; do
    fd=${fd##*/}
    if ((fd > 2)); then eval "exec $fd>&-"; fi
  done
  exec "$@" </dev/null >>"$VM/start.log" 2>&1
)

# The ssh command line, as an array, for exec and setsid cannot run functions. Set by ssh_command, once the port is known.
SSH=(false)
ssh_command() {
  [[ -e $VM/sockdir && -e $VM/port ]] || return 1
  SSH=(ssh -F /dev/null -S "$(cat "$VM/sockdir")/mux" -p "$(cat "$VM/port")" -i "$VM/key" -o IdentitiesOnly=yes
    -o BatchMode=yes -o HostKeyAlias=medway-vm -o UserKnownHostsFile="\"$VM/known_hosts\"" -o GlobalKnownHostsFile=/dev/null
    -o StrictHostKeyChecking=yes -o LogLevel=ERROR -o ConnectTimeout=30
    -o ServerAliveInterval=20 -o ServerAliveCountMax=9)
}

# All commands share one ssh connection: the handshake costs half a second on an emulated CPU, a channel much less.
connected() { ssh_command && "${SSH[@]}" -O check vm 2>/dev/null; }
connect() {
  local deadline=$((SECONDS + $1))
  until connected; do
    detached "${SSH[@]}" -M -f -N -o ControlPersist=no root@127.0.0.1 || true
    if ! connected; then
      qemu_pid >/dev/null || return 1
      ((SECONDS < deadline)) || return 1
      sleep 0.2
    fi
  done
}

make_keys() {
  local tmp
  mkdir -p "$CTL" "$OUT"
  chmod 700 "$VM"
  if [[ ! -e $VM/known_hosts ]]; then
    rm -f "$VM"/key* "$CTL"/{hostkey,authorized_keys}
    (umask 077 && ssh-keygen -q -t ed25519 -N '' -C medway-vm -f "$VM/key" && dropbearkey -t ed25519 -f "$CTL/hostkey" >/dev/null 2>&1)
    cp "$VM/key.pub" "$CTL/authorized_keys"
    tmp=$(dropbearkey -y -f "$CTL/hostkey" | grep '^ssh-ed25519 ')
    echo "medway-vm $tmp" >"$VM/known_hosts.tmp"
    mv "$VM/known_hosts.tmp" "$VM/known_hosts"   # last: it marks the set as complete
  fi
}

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))     # below the ports that the kernel gives out by itself
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
  done
}

share() { # share TAG PATH [readonly=on]: in a QEMU option a comma is written twice
  qemu+=(-fsdev "local,id=$1,path=${2//,/,,},security_model=none,multidevs=remap${3:+,$3}"
    -device "virtio-9p-pci,fsdev=$1,mount_tag=$1")
}

boot() {
  local qemu accel go port try started
  started=$(now)
  [[ -d $KERNEL ]] || die "no kernel for the virtual machine: run scripts/setup.sh"
  for go in qemu-system-x86_64 dropbear dropbearkey ssh ssh-keygen busybox cpio; do
    PATH=$PATH:/usr/sbin:/sbin have "$go" || die "no $go: run scripts/setup.sh"
  done
  if [[ ! -s $INITRAMFS || $REPO/scripts/guest/init -nt $INITRAMFS ]]; then build_initramfs; fi
  make_keys
  clean_up
  mktemp -d "${TMPDIR:-/tmp}/medway-vm.XXXXXX" >"$VM/sockdir"   # short: a socket's path has at most 107 bytes
  cp "$REPO/scripts/guest/job" "$CTL/job"
  chmod 755 "$CTL/job"
  {
    quote "$REPO" | sed 's/^ /REPO=/'; echo
    quote "$OUT" | sed 's/^ /OUT=/'; echo
    quote "$(kernel_modules)" | sed 's/^ /MODULES=/'; echo
    echo "ADDRESS=$NET.15"
  } >"$CTL/conf"

  # /dev/kvm alone proves nothing: on a host without the CPU's help it may open, and then the kernel hangs.
  accel=(-accel "tcg,thread=multi")
  if [[ ${MEDWAY_VM_KVM:-1} != 0 && -r /dev/kvm && -w /dev/kvm ]] && grep -qwE 'vmx|svm' /proc/cpuinfo; then accel=(-accel kvm); fi
  say "booting $(kernel_version) (${accel[1]%%,*}) ..."
  for try in 1 2 3 4 5; do
    port=$(free_port)
    : >"$VM/console.log"
    qemu=(qemu-system-x86_64 -name "medway-vm:$VM" "${accel[@]}" -cpu max,la57=off -smp "${MEDWAY_VM_CPUS:-2}" -m "${MEDWAY_VM_MEM:-6144}"
      -nodefaults -no-user-config -display none -no-reboot -serial "file:$VM/console.log"
      -kernel "$(kernel_image)" -initrd "$INITRAMFS"
      -append "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on tsc=reliable"
      # tsc=reliable: else an emulated machine reads its clock from the slow HPET. la57: a fifth page table level, for nothing.
      # restrict: nothing inside reaches the world; only the forwarded port leads in.
      -netdev "user,id=net,net=$NET.0/24,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:$port-$NET.15:22"
      -device virtio-net-pci,netdev=net,romfile=
      -daemonize -pidfile "$VM/pid")
    share root / readonly=on
    share repo "$REPO" readonly=on
    share out "$OUT"
    share ctl "$CTL" readonly=on
    : >"$VM/start.log"
    echo "$port" >"$VM/port"
    if detached "${qemu[@]}"; then break; fi
    # Someone may have taken the port in the meantime; anything else is fatal.
    if ((try == 5)) || ! grep -q 'host forwarding' "$VM/start.log"; then cat "$VM/start.log" >&2; die "QEMU did not start"; fi
  done

  SECONDS=0
  until grep -q 'medway-vm: ready' "$VM/console.log"; do
    if ! qemu_pid >/dev/null; then tail -n 15 "$VM/console.log" >&2; die "the machine stopped while booting ($VM/console.log)"; fi
    if ((SECONDS > ${MEDWAY_VM_BOOT_TIMEOUT:-180})); then
      tail -n 15 "$VM/console.log" >&2
      clean_up
      die "not up after $SECONDS s ($VM/console.log)"
    fi
    sleep 0.1
  done
  connect 60 || { tail -n 5 "$VM/console.log" "$VM/start.log" >&2; die "the machine is up but does not answer on port $port"; }
  # The machine's own guess (its RTC) is whole seconds, and late by what an emulated boot takes.
  "${SSH[@]}" -n vm "date -s @$(date +%s.%N)" >/dev/null || say "could not set the machine's clock"
  say "up after $(since "$started") s"
}

# Ends what is left of a machine, whole or half.
clean_up() {
  local pid i
  if ssh_command; then "${SSH[@]}" -O exit vm 2>/dev/null || true; fi
  if pid=$(qemu_pid); then
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < 50; i++)); do qemu_pid >/dev/null || break; sleep 0.1; done
    if pid=$(qemu_pid); then kill -KILL "$pid" 2>/dev/null || true; fi
  fi
  if [[ -e $VM/sockdir ]]; then rm -rf "$(cat "$VM/sockdir")"; fi
  rm -rf "$VM"/{pid,port,sockdir,jobs} "$OUT/.exec"
}

locked() { # one at a time may boot, connect or stop
  local lock
  mkdir -p "$VM"
  exec {lock}>"$VM/lock"
  flock "$lock"
  "$@"
  exec {lock}>&-
}
up_locked() {
  if qemu_pid >/dev/null && connect 20; then return; fi
  boot
}
ensure_up() {
  # Without the lock first: the usual case must be fast.
  if [[ -e $VM/sockdir ]] && qemu_pid >/dev/null && connected; then return; fi
  locked up_locked
}
down_locked() {
  rm -f "$BORROWED"
  if qemu_pid >/dev/null; then
    if connected; then timeout 10 "${SSH[@]}" -n vm sync || true; fi
    clean_up
    say "down"
  else
    clean_up
    say "was not up"
  fi
}

# Not "kill -INT -- -N": the shell inside is dash, whose kill does not know "--".
kill_command() { echo "kill -$1 -\$(cat /run/medway/jobs/$2)"; }
signal_job() { "${SSH[@]}" -n vm "$(kill_command "$1" "$2")" >/dev/null 2>&1 || true; }

environment=()
default_environment() {
  local gobin
  gobin=$(command -v go || true)
  environment=(HOME=/root "SHELL=/bin/bash" "MEDWAY_VM=1"
    "PATH=${gobin:+$(dirname "$gobin"):}/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
  local name
  for name in TERM LANG LC_ALL TZ NO_COLOR; do
    if [[ -v $name ]]; then environment+=("$name=${!name}"); fi
  done
}

run() {
  local id=$$.$RANDOM pid rc signals=0 file alive killer=
  default_environment
  while (($# > 0)); do
    case $1 in
      -e) [[ ${2-} ]] || die "-e needs NAME or NAME=VALUE"
        if [[ $2 == *=* ]]; then environment+=("$2"); elif [[ -v $2 ]]; then environment+=("$2=${!2}"); fi
        shift 2 ;;
      --) shift; break ;;
      -*) die "unknown option $1 (is a -- missing before the command?)" ;;
      *) break ;;
    esac
  done
  (($# > 0)) || die "usage: $0 run [-e NAME[=VALUE]]... -- CMD [ARGS...]"
  ensure_up
  mkdir -p "$VM/jobs"
  : >"$VM/jobs/$id"
  # If we are killed outright, the far end of this pipe sees it, and ends the command inside.
  exec {alive}> >(exec setsid bash -c 'cat; if [[ -e $0 ]]; then rm -rf "$0" "$1"; shift; "$@"; fi' \
    "$VM/jobs/$id" "$OUT/.exec/$id" "${SSH[@]}" -n vm "$(kill_command KILL "$id")" >/dev/null 2>&1)

  # A program below a folder that the machine has of its own (go test builds below /tmp) is handed over in the share.
  file=$1
  if [[ $file == */* && -f $file ]]; then
    file=$(realpath "$file")
    case $file in
      "$REPO"/*) ;;
      /tmp/* | /run/* | /dev/shm/*)
        mkdir -p "$OUT/.exec/$id"
        cp "$file" "$OUT/.exec/$id/"
        shift
        set -- "$OUT/.exec/$id/${file##*/}" "$@" ;;
    esac
  fi

  # ssh gets its own session, so that Ctrl-C reaches us alone and we can pass it on to the command inside, which may
  # want to clean up. The second Ctrl-C, or 30 seconds, ends it for good.
  setsid "${SSH[@]}" -T root@127.0.0.1 \
    "exec /run/medway/job$(quote "$id" "$PWD" "${environment[@]}" "$@")" <&0 {alive}>&- &
  pid=$!
  pass_on() {
    signals=$((signals + 1))
    if ((signals > 1)); then signal_job KILL "$id"; return; fi
    signal_job "$1" "$id"
    (sleep 30; signal_job KILL "$id") </dev/null >/dev/null 2>&1 {alive}>&- &
    killer=$!
  }
  trap 'pass_on INT' INT
  trap 'pass_on TERM' TERM
  trap 'pass_on HUP' HUP
  trap 'pass_on QUIT' QUIT
  while :; do
    rc=0
    wait "$pid" || rc=$?
    kill -0 "$pid" 2>/dev/null || break     # else a signal ended the wait, not ssh
  done
  # A trap between ssh's end and wait's return leaves wait's status unclear; asking once more is harmless.
  trap '' INT TERM HUP QUIT
  if [[ $killer ]]; then kill "$killer" 2>/dev/null || true; fi
  rm -rf "$VM/jobs/$id" "$OUT/.exec/$id"
  if ((rc == 255)) && ! qemu_pid >/dev/null; then say "the machine is gone ($VM/console.log)"; fi
  return "$rc"
}

shell() {
  default_environment
  ensure_up
  if (($# == 0)); then set -- bash -i; fi
  exec "${SSH[@]}" -t root@127.0.0.1 \
    "cd$(quote "$PWD") 2>/dev/null || cd /; exec env -u SSH_CONNECTION -u SSH_CLIENT -u SSH_TTY$(quote "${environment[@]}" "$@")"
}

status() {
  local pid
  if ! pid=$(qemu_pid); then echo "down"; return 3; fi
  if [[ -e $VM/sockdir ]] && connected; then
    echo "up: pid $pid, ssh on 127.0.0.1:$(cat "$VM/port"), $(ls "$VM/jobs" 2>/dev/null | wc -l) command(s) running, console $VM/console.log"
  else
    echo "pid $pid, not answering (booting?), console $VM/console.log"
    return 3
  fi
}

main() {
  case ${1-} in
    up) ensure_up ;;
    run | shell | status) command=$1; shift; "$command" "$@" ;;
    forward) [[ ${2-} ]] || die "usage: $0 forward [HOST:]PORT:ADDR:PORT"
      ensure_up; "${SSH[@]}" -O forward -L "$2" vm ;;
    down) locked down_locked ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
  esac
}
main "$@"; exit    # on one line: an edit of this file does not disturb a long run
