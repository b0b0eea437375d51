// Package intent reads the YAML files in which operators write VIPs, pools,
// backends and settings, and checks them beside what is stored.
package intent
