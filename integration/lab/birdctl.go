package lab

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A Route is one path that a router holds for a prefix.
type Route struct {
	Prefix netip.Prefix
	// Session is the node at the other end of the BGP session that brought the route.
	Session string
	From    netip.Addr
	NextHop netip.Addr
	MED     int // NoMED where it has none
	// Path is the length of the AS path.
	Path int
	Best bool
}

// Routes lists what a router holds for the VIPs, by prefix in its order of preference.
func (l *Lab) Routes(router string) ([]Route, error) {
	out, err := l.Birdc(router, fmt.Sprintf("show route all where source = RTS_BGP && (net ~ %s || net ~ %s)", vipNet, vipNet6))
	if err != nil {
		return nil, err
	}
	return parseRoutes(out)
}

// Sessions tells the state of each BGP session of a router ("Established").
func (l *Lab) Sessions(router string) (map[string]string, error) {
	out, err := l.Birdc(router, "show protocols")
	if err != nil {
		return nil, err
	}
	return parseSessions(out), nil
}

// Birdc asks BIRD over its control socket, as birdc does, without a process start.
func (l *Lab) Birdc(router, command string) (string, error) {
	conn, err := net.DialTimeout("unix", l.path(router, "bird.ctl"), time.Second)
	if err != nil {
		return "", fmt.Errorf("bird on %s: %w", router, err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(conn)
	if _, err := readReply(r); err != nil { // the greeting
		return "", fmt.Errorf("bird on %s: %w", router, err)
	}
	if _, err := fmt.Fprintf(conn, "%s\n", command); err != nil {
		return "", fmt.Errorf("bird on %s: %w", router, err)
	}
	out, err := readReply(r)
	if err != nil {
		return "", fmt.Errorf("bird on %s: %s: %w", router, command, err)
	}
	return out, nil
}

// readReply reads lines "NNNN-text" and " text" up to the last one, "NNNN text".
// Codes of 8000 and above are errors.
func readReply(r *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return b.String(), err
		}
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, " ") {
			b.WriteString(line[1:] + "\n")
			continue
		}
		if len(line) < 5 {
			return b.String(), fmt.Errorf("reply %q", line)
		}
		code, text := line[:4], line[5:]
		if code >= "8000" {
			return b.String(), fmt.Errorf("%s", text)
		}
		b.WriteString(text + "\n")
		if line[4] == ' ' {
			return b.String(), nil
		}
	}
}

// parseRoutes reads the answer to `show route all`. A prefix is printed with its first
// route only; attributes follow, indented by tabs.
func parseRoutes(out string) ([]Route, error) {
	var routes []Route
	var prefix netip.Prefix
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		if attr, isAttr := strings.CutPrefix(line, "\t"); isAttr {
			if len(routes) > 0 {
				routes[len(routes)-1].setAttribute(attr)
			}
			continue
		}
		before, after, found := strings.Cut(line, "unicast [")
		if !found {
			continue
		}
		if s := strings.TrimSpace(before); s != "" {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return nil, fmt.Errorf("route %q: %w", line, err)
			}
			prefix = p
		}
		source, flags, _ := strings.Cut(after, "]")
		r := Route{Prefix: prefix, MED: NoMED, Best: strings.HasPrefix(strings.TrimSpace(flags), "*")}
		fields := strings.Fields(source)
		r.Session = fields[0]
		for i, f := range fields {
			if f == "from" && i+1 < len(fields) {
				r.From, _ = netip.ParseAddr(fields[i+1])
			}
		}
		routes = append(routes, r)
	}
	for i := range routes {
		// BIRD leaves "from" out where it is the next hop.
		if !routes[i].From.IsValid() {
			routes[i].From = routes[i].NextHop
		}
	}
	return routes, nil
}

func (r *Route) setAttribute(line string) {
	key, value, _ := strings.Cut(line, ":")
	value = strings.TrimSpace(value)
	switch key {
	case "BGP.med":
		r.MED, _ = strconv.Atoi(value)
	case "BGP.as_path":
		r.Path = len(strings.Fields(value))
	case "BGP.next_hop":
		// An IPv6 one may be followed by the link-local one.
		first, _, _ := strings.Cut(value, " ")
		r.NextHop, _ = netip.ParseAddr(first)
	}
}

// parseSessions reads the answer to `show protocols`.
func parseSessions(out string) map[string]string {
	sessions := map[string]string{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 4 || f[1] != "BGP" {
			continue
		}
		// name BGP table state date time info: the info is empty while the session is down.
		sessions[f[0]] = f[3]
		if len(f) > 6 {
			sessions[f[0]] = f[6]
		}
	}
	return sessions
}
