package sysctl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
)

// path is the file of a parameter. As in sysctl(8), a dot parts the names and
// a slash stands for a dot inside the name of an interface.
func path(key plan.Sysctl) string {
	return strings.NewReplacer(".", "/", "/", ".").Replace(string(key))
}

// normal is the form in which values are compared: vectors are printed with
// tabs between the numbers and written with spaces.
func normal(value string) string { return strings.Join(strings.Fields(value), " ") }

// modules are the kernel modules that bring parameters with them.
var modules = []struct{ prefix, module string }{
	{"net.ipv4.vs.", "ip_vs"},
	{"net.netfilter.nf_conntrack_", "nf_conntrack"},
	{"net.bridge.", "br_netfilter"},
}

// explain adds to a missing file what the operator should look for.
func explain(root *os.Root, key plan.Sysctl, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", key, err)
	}
	for _, m := range modules {
		if strings.HasPrefix(string(key), m.prefix) {
			return fmt.Errorf("%s is missing: is the kernel module %s loaded? %w", key, m.module, err)
		}
	}
	names := strings.Split(string(key), ".")
	if _, err := root.Stat("net/ipv6/conf"); strings.HasPrefix(string(key), "net.ipv6.") && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing: this kernel has no IPv6 (is ipv6.disable=1 among its boot parameters?): %w", key, err)
	}
	if len(names) > 3 && names[0] == "net" && (names[2] == "conf" || names[2] == "neigh") {
		dev := strings.ReplaceAll(names[3], "/", ".")
		return fmt.Errorf("%s is missing: is there a network device %s? %w", key, dev, err)
	}
	return fmt.Errorf("%s is missing in this kernel: %w", key, err)
}
