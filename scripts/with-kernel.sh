#!/usr/bin/env bash
# with-kernel.sh CMD [ARGS...]: runs CMD as root on a kernel with IPVS: here, if this host's kernel has it, or
# else in the virtual machine of vm.sh, which is booted if it is down. The exit status is CMD's.
# For tests: go test -exec "$PWD/scripts/with-kernel.sh" ./...
set -euo pipefail
PROG=with-kernel
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
(($# > 0)) || die "usage: $0 CMD [ARGS...]"

if host_has_ipvs; then
  if ((EUID == 0)); then exec "$@"; fi
  have sudo || die "not root, and there is no sudo: run this as root"
  exec sudo -E env "PATH=$PATH" "$@"
fi

# What a native run would have inherited and a test may care about. -e NAME takes the value from our environment.
pass=()
for name in $(compgen -e); do
  case $name in
    MEDWAY_* | GODEBUG | GOMAXPROCS | GOMEMLIMIT | GOGC | GOTRACEBACK | GOCOVERDIR) pass+=(-e "$name") ;;
  esac
done
exec "$REPO/scripts/vm.sh" run "${pass[@]}" -- "$@"
