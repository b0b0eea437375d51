#!/usr/bin/env bash
# Every fuzz target for FUZZTIME (default 30s), one after the other, with one line of figures each. What a target
# finds goes into its package's testdata/fuzz and is a test from then on. TARGETS="name ..." runs only those.
set -euo pipefail
PROG=fuzz
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$REPO"
failed=0
mapfile -t files < <(git grep -l '^func Fuzz' -- '*_test.go')
for dir in $(dirname "${files[@]}" | sort -u); do
  for target in $(grep -ho '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | cut -d' ' -f2 | sort); do
    [[ -z ${TARGETS:-} || " $TARGETS " == *" $target "* ]] || continue
    if out=$(go test -run='^$' -fuzz="^$target\$" -fuzztime="${FUZZTIME:-30s}" "./$dir" 2>&1); then
      verdict=ok
    else
      verdict=FAIL failed=1
    fi
    figures=$(grep -o 'execs: .*' <<<"$out" | tail -1) || true
    printf '%-4s %-28s %-18s %s %s\n' "$verdict" "$dir" "$target" "${FUZZTIME:-30s}" "${figures:-no figures}"
    [[ $verdict == ok ]] || printf '%s\n' "$out"
  done
done
exit "$failed"
