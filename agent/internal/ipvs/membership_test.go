package ipvs

import "testing"

// As Linux 6.1 prints them on a little-endian machine.
const (
	procIGMP = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n" +
		"1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n" +
		"3\tsync01    :     2      V3\n\t\t\t\t510000E0     1 0:00000000\t\t0\n\t\t\t\t010000E0     1 0:00000000\t\t0\n" +
		"4\tverylongname123:     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n"
	procIGMP6 = "3    sync01          ff020000000000000000000000000081     1 00000004 0\n" +
		"4    sync01p         ff020000000000000000000000000001     1 0000000C 0\n"
)

func TestMembership(t *testing.T) {
	if native.Uint16([]byte{1, 0}) != 1 {
		t.Skip("SKIPPED: the samples are of a little-endian machine")
	}
	all := group4.Prev() // not joined anywhere
	for _, c := range []struct {
		device string
		want   bool
	}{{"sync01", true}, {"sync0", false}, {"lo", false}, {"verylongname123", false}, {"gone", false}} {
		if got := inIGMP(procIGMP, c.device, group4); got != c.want {
			t.Errorf("%s in %s: %v", c.device, group4, got)
		}
		if inIGMP(procIGMP, c.device, all) {
			t.Errorf("%s in %s", c.device, all)
		}
		if got := inIGMP6(procIGMP6, c.device, group6); got != c.want {
			t.Errorf("%s in %s: %v", c.device, group6, got)
		}
	}
	if inIGMP6(procIGMP6, "sync01p", group6) || inIGMP("", "sync01", group4) {
		t.Error("joined without being in it")
	}
}

// A daemon that is deaf differs from every wanted one.
func TestDeafDaemonIsADifference(t *testing.T) {
	want := example().Daemons["backup"]
	d, err := daemonToKernel("backup", want)
	if err != nil {
		t.Fatal(err)
	}
	for _, deaf := range []bool{false, true} {
		d.deaf = deaf
		if _, got := daemonToPlan(d); (got == want) == deaf {
			t.Errorf("deaf %v: %+v", deaf, got)
		}
	}
}
