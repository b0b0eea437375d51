#!/usr/bin/env bash
# Prepares this machine for the demo, the drills and the integration tests: packages, and, only where the
# running kernel has no IPVS, a kernel for the virtual machine of vm.sh. Run it as often as you like.
# setup.sh bench: what the benchmark compares with, too.
set -euo pipefail
PROG=setup
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

BASE_PACKAGES=(curl iproute2 iptables ipset ipvsadm bird2 frr sip-tester strace tcpdump kmod procps librsvg2-bin fonts-dejavu-core)
BENCH_PACKAGES=(exabgp keepalived)
VM_PACKAGES=(qemu-system-x86 cpio busybox-static dropbear-bin openssh-client)
APT=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=2)
# The auditor of the console's accessibility: npm's package axe-core. The sum is that of the file.
AXE_URL=https://registry.npmjs.org/axe-core/-/axe-core-4.14.1.tgz
AXE=axe-core-4.14.1.min.js
AXE_SHA256=29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c
POLICY=/usr/sbin/policy-rc.d
policy_is_ours=
problems=0

problem() { say "MISSING: $*"; problems=1; }

cleanup() {
  if [[ $policy_is_ours ]]; then rm -f "$POLICY"; fi
  rm -rf "$CACHE"/kernel.unpack.* "$CACHE"/axe.unpack.* "$CACHE"/initramfs.??????
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

is_installed() { [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

update_lists() {
  say "package lists: updating ..."
  # A third-party source that is down must not stop us: apt says on the next line whether it found the package.
  "${APT[@]}" update >/dev/null || say "package lists: apt-get update failed; going on with the lists that are there"
}

install_packages() {
  local p missing=() started=$SECONDS units=()
  for p in "$@"; do is_installed "$p" || missing+=("$p"); done
  if ((${#missing[@]} == 0)); then say "packages: all there ($*)"; return 0; fi
  if ((EUID != 0)); then
    problem "packages ${missing[*]}; this is not root, so run: sudo $0"
    return 0
  fi
  update_lists
  say "packages: installing ${missing[*]} ... (20 to 90 s)"
  # No daemon (bird's, FRR's) is to start on this machine: Debian asks policy-rc.d, 101 means no.
  # "set -C" creates it or fails: one that is already there stays, and says what its owner wants.
  if (set -C; printf '#!/bin/sh\nexit 101\n' >"$POLICY") 2>/dev/null; then
    policy_is_ours=1
    chmod 755 "$POLICY"
  fi
  for p in "${missing[@]}"; do
    case $p in
      bird2) units+=(bird.service) ;;
      exabgp | frr | keepalived) units+=("$p.service") ;;
    esac
  done
  if ! DEBIAN_FRONTEND=noninteractive "${APT[@]}" install --no-install-recommends "${missing[@]}" >"$CACHE/apt.log" 2>&1; then
    tail -n 5 "$CACHE/apt.log" >&2
    problem "packages ${missing[*]}: apt-get could not install them (no network? the whole log: $CACHE/apt.log)"
  fi
  if [[ $policy_is_ours ]]; then rm -f "$POLICY"; policy_is_ours=; fi
  # Nor at the next boot. Only for what we have just installed: an operator's own stay as they are.
  if ((${#units[@]})) && have systemctl; then systemctl -q disable "${units[@]}" >/dev/null 2>&1 || true; fi
  say "packages: done ($((SECONDS - started)) s)"
}

is_axe() { [[ -f $1 && $(sha256sum <"$1") == "$AXE_SHA256  -" ]]; }

fetch_axe() {
  if is_axe "$CACHE/$AXE"; then say "axe-core: is there"; return 0; fi
  local unpack
  unpack=$(mktemp -d "$CACHE/axe.unpack.XXXXXX")
  if curl -fsSL --retry 3 --max-time 60 "$AXE_URL" | tar -xz -C "$unpack" package/axe.min.js && is_axe "$unpack/package/axe.min.js"; then
    mv "$unpack/package/axe.min.js" "$CACHE/$AXE"
    say "axe-core: fetched"
  else
    problem "axe-core: could not fetch $AXE_URL with the content that it should have"
  fi
  rm -rf "$unpack"
}

# The names of the packages that make one complete kernel, image first.
kernel_packages() {
  local meta image version
  meta=linux-image-amd64
  [[ $ID != ubuntu ]] || meta=linux-image-generic
  image=$(apt-cache depends "$meta" 2>/dev/null | sed -nE 's/^ *Depends: (linux-image-[0-9][^ ]*)$/\1/p' | head -n 1)
  [[ $image ]] || return 1
  echo "$image"
  version=${image#linux-image-}
  if [[ $ID == ubuntu ]]; then printf '%s\n' "linux-modules-$version" "linux-modules-extra-$version"; fi
}

# extract_vmlinux BZIMAGE TO CONFIG: QEMU can start an uncompressed kernel directly (PVH), which saves an emulated CPU several
# seconds of decompression. Just an optimisation: where it cannot be done there will be no file.
extract_vmlinux() {
  local sectors offset length unpack
  grep -qx CONFIG_PVH=y "$3" 2>/dev/null || return 0
  # Three fields of the boot header: Documentation/arch/x86/boot.rst.
  sectors=$(od -An -tu1 -j497 -N1 "$1") offset=$(od -An -tu4 -j584 -N4 "$1") length=$(od -An -tu4 -j588 -N4 "$1")
  offset=$(((sectors + 1) * 512 + offset))
  case $(od -An -tx1 -j "$offset" -N 4 "$1") in
    ' fd 37 7a 58') unpack=xz ;;
    ' 28 b5 2f fd') unpack=zstd ;;
    ' 1f 8b'*) unpack=gzip ;;
    *) return 0 ;;
  esac
  # The last four bytes are not compressed data but the size of the result.
  if dd if="$1" bs=64K iflag=skip_bytes,count_bytes skip="$offset" count="$((length - 4))" status=none | "$unpack" -dc >"$2" 2>/dev/null &&
    [[ $(od -An -tx1 -N 4 "$2") == ' 7f 45 4c 46' ]]; then return 0; fi
  rm -f "$2"
}

fetch_kernel() {
  local packages p unpack started=$SECONDS
  if [[ -d $KERNEL ]]; then say "kernel: $(kernel_version) is there"; return 0; fi
  if ! packages=$(kernel_packages); then
    if ((EUID == 0)); then update_lists; fi
    packages=$(kernel_packages) || { problem "kernel: apt knows no linux-image package (no package lists? run: sudo apt-get update)"; return 0; }
  fi
  mkdir -p "$CACHE/download"
  say "kernel: downloading ${packages//$'\n'/ } (70 MB; 10 s and more) ..."
  # The folder is kept when this is interrupted, and apt (which checks the signed sums) goes on from there.
  # The sandbox user could not write into the cache.
  # shellcheck disable=SC2086
  if ! (cd "$CACHE/download" && "${APT[@]}" -o APT::Sandbox::User=root download $packages >"$CACHE/apt.log" 2>&1); then
    # The lists may be older than the archive, which drops superseded kernels.
    if ((EUID == 0)); then update_lists; fi
    packages=$(kernel_packages)
    # shellcheck disable=SC2086
    if ! (cd "$CACHE/download" && "${APT[@]}" -o APT::Sandbox::User=root download $packages >"$CACHE/apt.log" 2>&1); then
      tail -n 3 "$CACHE/apt.log" >&2
      problem "kernel: could not download ${packages//$'\n'/ } (no network, or old package lists: sudo apt-get update)"
      return 0
    fi
  fi
  say "kernel: unpacking ..."
  unpack=$(mktemp -d "$CACHE/kernel.unpack.XXXXXX")
  for p in $packages; do dpkg -x "$(ls -t "$CACHE/download/$p"_*.deb | head -n 1)" "$unpack"; done
  # Let no one think that this is a bootable system: what is not needed goes.
  rm -rf "$unpack/usr/share" "$unpack"/boot/System.map-*
  p=$unpack/lib/modules
  [[ -d $p ]] || p=$unpack/usr/lib/modules
  PATH=$PATH:/usr/sbin:/sbin depmod -b "${p%/lib/modules}" "$(ls "$p")"
  chmod 755 "$unpack"
  extract_vmlinux "$unpack"/boot/vmlinuz-* "$unpack/boot/vmlinux" "$unpack"/boot/config-*
  mv "$unpack" "$KERNEL"
  rm -rf "$CACHE/download" "$INITRAMFS"
  say "kernel: $(kernel_version) in $KERNEL ($((SECONDS - started)) s)"
}

[[ $(uname -s) == Linux ]] || die "this is $(uname -s): medway needs Linux (Debian or Ubuntu)"
[[ $(uname -m) == x86_64 ]] || die "this is $(uname -m): only x86_64 has been tried"
ID=unknown ID_LIKE=
# shellcheck source=/dev/null
if [[ -r /etc/os-release ]]; then source /etc/os-release; fi
if ! have dpkg-query || ! have apt-get; then
  die "this is not Debian or Ubuntu ($ID): install these yourself, under your system's names: ${BASE_PACKAGES[*]}; and, if your kernel has no ip_vs, use a Debian virtual machine"
fi
mkdir -p "$CACHE" "$OUT"

# Ubuntu has Chromium as a snap alone; another browser of the family does.
have google-chrome || have chromium || BASE_PACKAGES+=(chromium)
install_packages "${BASE_PACKAGES[@]}"
fetch_axe
if [[ ${1:-} == bench ]]; then install_packages "${BENCH_PACKAGES[@]}"; fi
if host_has_ipvs; then
  say "kernel: $(uname -r) has IPVS and IPIP; no virtual machine needed"
else
  say "kernel: $(uname -r) has no IPVS or IPIP (or may not load them); tests that need them will run in a virtual machine"
  install_packages "${VM_PACKAGES[@]}"
  fetch_kernel
  if [[ -d $KERNEL ]] && have busybox && have cpio; then
    if [[ ! -s $INITRAMFS || $REPO/scripts/guest/init -nt $INITRAMFS ]]; then build_initramfs; say "initramfs: built"; else say "initramfs: is there"; fi
  fi
fi

if have go || [[ -x /usr/local/go/bin/go ]]; then
  say "Go: $(PATH=$PATH:/usr/local/go/bin go env GOVERSION) (go.mod asks for $(sed -n 's/^go //p' "$REPO/go.mod" 2>/dev/null || true))"
else
  problem "Go: install it from https://go.dev/dl/ into /usr/local/go, or put it on the PATH"
fi

((problems == 0)) || die "not ready: see the lines with MISSING above, then run this again"
say "ready ($SECONDS s)"
