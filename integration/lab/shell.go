package lab

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Environment is what a shell on a node needs beyond its own: the project's
// programs, the lab's etcd, as the operator, and a prompt that says where it is.
func (l *Lab) Environment(node string) []string {
	return append(l.EtcdEnvironment(Operator),
		"PATH="+l.BinDir()+":"+os.Getenv("PATH"),
		"ETCDCTL_ENDPOINTS="+strings.Join(l.Endpoints(), ","),
		"PS1="+node+"# ",
	)
}

// Hint says what there is to see on a node.
func (l *Lab) Hint(node string) string {
	n, _ := l.topo.Node(node)
	switch {
	case slices.Contains(l.topo.Routers(), node):
		return fmt.Sprintf("birdc -s %s show route all\n", l.path(node, "bird.ctl"))
	case n.Role == RoleLVS:
		return fmt.Sprintf("ipvsadm -ln; ipvsadm -lnc; iptables -t mangle -S; ip -d link; tail %s\nmedway-agent status -c %[2]s; medway-agent plan -c %[2]s\n",
			l.path(node, "agent.log"), l.path(node, "agent.yaml"))
	case n.Role == RoleClients:
		return fmt.Sprintf("sbc idle %s:5060 -n 20 --every 5s\n", VIP)
	}
	return fmt.Sprintf("medwayctl status; etcdctl put /medway/v1/target_state/%s dc2; medwayctl apply -f %s --dry-run\n", VIPName, l.IntentDir())
}
