# shellcheck shell=bash
# Shared by setup.sh, vm.sh and with-kernel.sh; sourced, never run.

# pwd -P: the virtual machine mounts the clone at its real path, so symlinks must be gone from it.
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# One cache per clone, also when it is moved by MEDWAY_CACHE: the machine's port, keys and pid are in it.
CACHE=$(realpath -m "${MEDWAY_CACHE:-$REPO/.cache}")
OUT=$CACHE/out
KERNEL=$CACHE/kernel             # an unpacked linux-image package, complete if it exists at all
INITRAMFS=$CACHE/initramfs.gz
BORROWED=$CACHE/vm/borrowed      # marks a virtual machine that ends with the run that booted it

say() { printf '[%s] %s\n' "$PROG" "$*" >&2; }
die() { say "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# host_has_ipvs: can this kernel do what medway needs from it: IPVS and IPIP tunnels?
# As root it is tried for real, in a namespace that is thrown away (which also catches a container that may
# not make namespaces or load modules). Anyone else can only ask whether the modules are there.
host_has_ipvs() {
  local PATH=$PATH:/usr/sbin:/sbin
  if ((EUID == 0)); then
    [[ -e /proc/net/ip_vs ]] || modprobe -q ip_vs 2>/dev/null || true
    modprobe -q ipip 2>/dev/null || true
    unshare -n sh -c 'test -e /proc/net/ip_vs &&
      ip link add medwaytest type ipip local 127.0.0.1 remote 127.0.0.2' 2>/dev/null
  else
    modprobe -n -q ip_vs 2>/dev/null && modprobe -n -q ipip 2>/dev/null
  fi
}

# A virtual machine that this run boots ends with it. One that is up already is a person's (make lab), unless the run that
# booted it was killed: then it is this run's to end. Who lives holds a lock on the file.
end_machine_with_us() {
  if "$REPO/scripts/vm.sh" status >/dev/null 2>&1 && [[ ! -e $BORROWED ]]; then return; fi
  mkdir -p "${BORROWED%/*}"
  exec {borrowed}>>"$BORROWED"
  if flock -n "$borrowed"; then trap '[[ ! -e $BORROWED ]] || "$REPO/scripts/vm.sh" down 2>/dev/null' EXIT; fi
}

kernel_version() { basename "$(echo "$KERNEL"/boot/vmlinuz-*)" | cut -d- -f2-; }

kernel_image() {
  if [[ -s $KERNEL/boot/vmlinux ]]; then echo "$KERNEL/boot/vmlinux"; else echo "$KERNEL/boot/vmlinuz-$(kernel_version)"; fi
}

# The parent of the kernel's lib/modules/<version>: newer packages have it below usr/.
kernel_modules() {
  if [[ -d $KERNEL/usr/lib/modules ]]; then echo "$KERNEL/usr/lib/modules"; else echo "$KERNEL/lib/modules"; fi
}

# The initramfs: one busybox, guest/init, and the modules that it takes to reach the host's root.
build_initramfs() {
  local version modules dir busybox file name
  version=$(kernel_version)
  modules=$(kernel_modules)
  busybox=$(command -v busybox) || die "no busybox: run scripts/setup.sh"
  dir=$(mktemp -d "$CACHE/initramfs.XXXXXX")
  mkdir -p "$dir"/{bin,modules,proc,sys,dev,ctl,lower,rw,newroot}
  cp "$busybox" "$dir/bin/busybox"
  cp "$REPO/scripts/guest/init" "$dir/init"
  chmod 755 "$dir/init" "$dir/bin/busybox"
  for name in virtio_pci virtio_net 9p 9pnet_virtio overlay; do
    # "insmod <file>" lines, in order; what is built in says "builtin" instead.
    PATH=$PATH:/usr/sbin:/sbin modprobe -d "${modules%/lib/modules}" -S "$version" --show-depends "$name"
  done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r file; do
    name=$(basename "${file%.ko*}").ko
    case $file in    # busybox insmod takes plain modules only
      *.xz) xz -dc "$file" >"$dir/modules/$name" ;;
      *.zst) zstd -qdc "$file" >"$dir/modules/$name" ;;
      *) cp "$file" "$dir/modules/$name" ;;
    esac
    echo "$name" >>"$dir/modules/order"
  done
  (cd "$dir" && find . -print0 | cpio --null --quiet -o -H newc -R 0:0 | gzip -1) >"$INITRAMFS.tmp.$$"
  mv "$INITRAMFS.tmp.$$" "$INITRAMFS"
  rm -rf "$dir"
}
