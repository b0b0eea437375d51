package main

import (
	"os"
	"testing"
)

// TestMain has the tests work straight on etcd, but for those that say otherwise, and
// with no file of whoever runs them.
func TestMain(m *testing.M) {
	for name, value := range map[string]string{"MEDWAYCTL_ETCD": "1", "XDG_CONFIG_HOME": "/nowhere"} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
