package drill

import (
	"testing"

	"github.com/medway-lb/medway/integration/lab"
)

// ipvsTable is /proc/net/ip_vs with two services; the kernel pads its columns.
const ipvsTable = `IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  CB00710A:13C4 sed 
  -> 0A010015:13C4      Tunnel  50000  40         3         
  -> 0A020015:13C4      Tunnel  2      0          0         
UDP  CB00710A:13C4 sed persistent 300
  -> 0A010015:13C4      Tunnel  50000  0          17        
`

func TestConnectionsAreAddedUp(t *testing.T) {
	const head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
	for text, want := range map[string]int{ipvsTable: 60, head: 0, "": 0} {
		if got, err := parseConnections(text); got != want || err != nil {
			t.Errorf("%d, %v, expected %d in\n%s", got, err, want, text)
		}
	}
	if n, err := parseConnections("  -> 0A010015:13C4      Tunnel  50000  many       3\n"); err == nil {
		t.Errorf("%d connections from a line without numbers", n)
	}
}

// ipvsPerCPU is /proc/net/ip_vs_stats_percpu: all numbers are hexadecimal, and
// "~" marks the totals.
const ipvsPerCPU = `       Total Incoming Outgoing         Incoming         Outgoing
CPU    Conns  Packets  Packets            Bytes            Bytes
  0       28      1AF        0            1A2B3                0
  1        0        1        0               28                0
  ~       28      1B0        0            1A2DB                0

     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
           0       1E        0              7D0                0
`

func TestPacketsAreTheTotals(t *testing.T) {
	if got, err := parsePackets(ipvsPerCPU); got != 0x1b0 || err != nil {
		t.Errorf("%#x, %v, expected 0x1b0", got, err)
	}
	for _, text := range []string{"", "  0       28      1AF        0            1A2B3                0\n", "  ~  28  many  0  0  0\n"} {
		if n, err := parsePackets(text); err == nil {
			t.Errorf("%d packets from %q", n, text)
		}
	}
}

func TestEntriesAreDistinctEstablishedClients(t *testing.T) {
	const text = `IPVS connection entries
pro expire state       source             virtual            destination
TCP 14:57  ESTABLISHED 198.51.100.10:40001 203.0.113.10:5060 10.1.0.21:5060
TCP 14:59  ESTABLISHED 198.51.100.10:40002 203.0.113.10:5060 10.1.0.22:5060
TCP 14:59  ESTABLISHED 198.51.100.10:40002 203.0.113.10:5060 10.1.0.22:5060
TCP 01:12  FIN_WAIT    198.51.100.10:40003 203.0.113.10:5060 10.1.0.21:5060
UDP 04:59  UDP         198.51.100.10:40004 203.0.113.10:5060 10.1.0.21:5060
TCP 14:59  ESTABLISHED 192.0.2.10:40001    203.0.113.10:5060 10.1.0.22:5060
TCP 14:59  ESTABLISHED [2001:db8:c1::10]:40001 [2001:db8:10::10]:5060 [2001:db8:1::21]:5060
UDP 04:59  UDP         [2001:db8:c1::10]:5061 [2001:db8:10::10]:5060 [2001:db8:1::21]:5060
UDP 04:59  UDP         [2001:db8:c1::10]:5062 [2001:db8:10::10]:5060 [2001:db8:1::21]:5060
UDP 04:59  UDP         [2001:db8:c1::10]:5063 [2001:db8:10::10]:5060 [2001:db8:1::21]:5060
`
	clients, _ := lab.Default().Node(lab.Clients)
	for kind, want := range map[Traffic]int{{}: 2, {IPv6: true}: 1, {UDP: true}: 1, {UDP: true, IPv6: true}: 3} {
		if got := kind.entries(text, clients); got != want {
			t.Errorf("%s: %d entries, expected %d", kind, got, want)
		}
	}
}
