package link

import (
	"fmt"
	"strings"

	"github.com/medway-lb/medway/pkg/plan"
	"github.com/medway-lb/medway/pkg/reconcile"
)

func (links) Show(c reconcile.Change[plan.LinkName, plan.Link]) reconcile.Text { return showLink(c) }
func (fakeLinks) Show(c reconcile.Change[plan.LinkName, plan.Link]) reconcile.Text {
	return showLink(c)
}

func (addresses) Show(c reconcile.Change[plan.Address, struct{}]) reconcile.Text {
	return showAddress(c)
}

func (routes) Show(c reconcile.Change[plan.Route, struct{}]) reconcile.Text     { return showRoute(c) }
func (fakeRoutes) Show(c reconcile.Change[plan.Route, struct{}]) reconcile.Text { return showRoute(c) }

func (neighbors) Show(c reconcile.Change[plan.Neighbor, plan.MAC]) reconcile.Text {
	return showNeighbor(c)
}

func (t fakeTable[K, V]) Show(c reconcile.Change[K, V]) reconcile.Text {
	if a, ok := any(c).(reconcile.Change[plan.Address, struct{}]); ok {
		return showAddress(a)
	}
	return showNeighbor(any(c).(reconcile.Change[plan.Neighbor, plan.MAC]))
}

func showLink(c reconcile.Change[plan.LinkName, plan.Link]) reconcile.Text {
	text := reconcile.Text{Table: "link"}
	if c.Op != reconcile.Create {
		text.Old = options(c.Old)
	}
	if c.Op != reconcile.Delete {
		text.New = options(c.New)
	}
	var lines []string
	switch c.Op {
	case reconcile.Create:
		lines = addLink(string(c.Key), c.New)
	case reconcile.Update:
		lines = setLink(string(c.Key), c.Old, c.New)
	case reconcile.Delete:
		lines = []string{"ip link del " + string(c.Key)}
	}
	text.Commands = reconcile.Commands(c.Op, lines...)
	return text
}

// options are a link's, as `ip link add` takes them. What is wrong with a
// present one (planned) is said behind.
func options(l plan.Link) string {
	kind, wrong, odd := strings.Cut(string(l.Kind), ", ")
	out := mtuAndMAC(l) + "type " + kind
	switch {
	case l.Peer != "":
		out += " peer name " + string(l.Peer)
	case l.Remote.IsValid():
		out += ends(l)
	}
	if odd {
		out += " (" + wrong + ")"
	}
	return out
}

func mtuAndMAC(l plan.Link) string {
	out := ""
	if l.MTU != 0 {
		out += fmt.Sprintf("mtu %d ", l.MTU)
	}
	if l.MAC != (plan.MAC{}) {
		out += fmt.Sprintf("address %s ", l.MAC)
	}
	return out
}

func ends(l plan.Link) string {
	ttl := "ttl"
	if l.Remote.Is6() {
		ttl = "hoplimit"
	}
	return fmt.Sprintf(" local %s remote %s %s %d", l.Local, l.Remote, ttl, l.TTL)
}

func addLink(name string, l plan.Link) []string {
	add := "ip link add " + name + " " + options(l)
	switch l.Kind { // ip-link(8) leaves the mode at another
	case plan.IPIP:
		add += " mode ipip"
	case plan.IP6Tnl:
		add += ipip6
	}
	lines := []string{add, "ip link set " + name + " up"}
	if l.Kind == plan.Veth {
		lines = append(lines, "ip link set "+string(l.Peer)+" "+mtuAndMAC(plan.Link{MTU: l.MTU})+"up")
	}
	return lines
}

const ipip6 = " encaplimit none mode ipip6"

// setLink changes a link where the kernel can, and makes it anew where not.
func setLink(name string, old, l plan.Link) []string {
	wrong := func(what string) bool { return strings.Contains(string(old.Kind), ", "+what) }
	kind, _, _ := strings.Cut(string(old.Kind), ", ")
	if old.Peer != l.Peer || kind != string(l.Kind) || wrong("external") {
		return append([]string{"ip link del " + name}, addLink(name, l)...)
	}
	var lines []string
	if old.Local != l.Local || old.Remote != l.Remote || old.TTL != l.TTL || wrong("nopmtudisc") || wrong("not of mode") || wrong("with an encaplimit") {
		mode := " pmtudisc mode ipip"
		if l.Kind == plan.IP6Tnl {
			mode = ipip6
		}
		lines = append(lines, "ip link set "+name+" type "+string(l.Kind)+ends(l)+mode)
	}
	changed := plan.Link{}
	if old.MTU != l.MTU {
		changed.MTU = l.MTU
	}
	if old.MAC != l.MAC {
		changed.MAC = l.MAC
	}
	if changed != (plan.Link{}) || wrong("down") {
		lines = append(lines, "ip link set "+name+" "+mtuAndMAC(changed)+"up")
	}
	if l.Kind == plan.Veth && (wrong("peer") || changed.MTU != 0) {
		peer := "ip link set " + string(l.Peer) + " " + mtuAndMAC(plan.Link{MTU: l.MTU})
		if l.MTU == 0 && wrong("peer with another MTU") {
			peer += "mtu $(ip -o link show " + name + " | sed 's/.* mtu \\([0-9]*\\).*/\\1/') "
		}
		lines = append(lines, peer+"up")
	}
	return lines
}

func showAddress(c reconcile.Change[plan.Address, struct{}]) reconcile.Text {
	line := fmt.Sprintf("ip addr %s %s dev %s", addOrDel(c.Op), c.Key.Prefix, string(c.Key.Link))
	if c.Key.Prefix.Addr().Is6() && c.Op != reconcile.Delete {
		line += " nodad preferred_lft 0"
	}
	return reconcile.Text{Table: "address", Commands: reconcile.Commands(c.Op, line)}
}

func showRoute(c reconcile.Change[plan.Route, struct{}]) reconcile.Text {
	return reconcile.Text{Table: "route", Commands: reconcile.Commands(c.Op,
		fmt.Sprintf("ip route %s %s dev %s proto %d scope link", addOrDel(c.Op), c.Key.Prefix, string(c.Key.Link), plan.RouteProtocol))}
}

func showNeighbor(c reconcile.Change[plan.Neighbor, plan.MAC]) reconcile.Text {
	text := reconcile.Text{Table: "neighbor"}
	if c.Op != reconcile.Create {
		text.Old = "lladdr " + c.Old.String()
	}
	line := fmt.Sprintf("ip neigh del %s dev %s", c.Key.Addr, string(c.Key.Link))
	if c.Op != reconcile.Delete {
		text.New = "lladdr " + c.New.String()
		line = fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", c.Key.Addr, c.New, string(c.Key.Link))
	}
	text.Commands = reconcile.Commands(c.Op, line)
	return text
}

func addOrDel(op reconcile.Op) string {
	if op == reconcile.Delete {
		return "del"
	}
	return "add"
}
