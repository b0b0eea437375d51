package probe

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// uas answers OPTIONS once a call, in SIPp's words.
const uas = `<?xml version="1.0" encoding="ISO-8859-1"?>
<!DOCTYPE scenario SYSTEM "sipp.dtd">
<scenario name="options">
  <recv request="OPTIONS"/>
  <send>
    <![CDATA[
SIP/2.0 200 OK
[last_Via:]
[last_From:]
[last_To:];tag=[call_number]
[last_Call-ID:]
[last_CSeq:]
Contact: <sip:[local_ip]:[local_port];transport=[transport]>
Content-Length: 0

]]>
  </send>
</scenario>
`

// TestSIPp asks a SIP endpoint that is not ours.
func TestSIPp(t *testing.T) {
	bin, err := exec.LookPath("sipp")
	if err != nil {
		t.Fatal("sipp is not installed (Debian package sip-tester)")
	}
	for transport, flag := range map[Transport]string{UDP: "u1", TCP: "t1"} {
		t.Run(string(transport), func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/uas.xml", []byte(uas), 0o644); err != nil {
				t.Fatal(err)
			}
			at := closedPort(t)
			const calls = 3
			cmd := exec.Command(bin, "-sf", "uas.xml", "-t", flag, "-i", "127.0.0.1", "-p", strconv.Itoa(int(at.Port())), "-m", strconv.Itoa(calls), "-nostdin")
			cmd.Dir = dir
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			listens(t, transport, at)
			for range calls {
				if err := (SIPOptions{Transport: transport}).Run(within(t, patience), at); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-ended: // 0: every call was as in the scenario
				if err != nil {
					t.Errorf("sipp: %v", err)
				}
			case <-time.After(patience):
				t.Error("sipp has not ended")
			}
		})
	}
}

// listens waits until the port is taken, and does not touch it.
func listens(t *testing.T, transport Transport, at netip.AddrPort) {
	t.Helper()
	ctx := within(t, patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	socket := fmt.Sprintf(" 0100007F:%04X ", at.Port()) // 127.0.0.1 as the kernel writes it
	for {
		table, err := os.ReadFile("/proc/net/" + strings.ToLower(string(transport)))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(table), socket) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal("sipp does not listen")
		case <-tick.C:
		}
	}
}
