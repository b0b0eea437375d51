package lab

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// RouteKind is what happened to a route.
type RouteKind string

// The kinds of route events.
const (
	// RouteReceived: a session brought the route, new or with other attributes.
	RouteReceived RouteKind = "received"
	// RouteBest: the router's kernel now uses this route.
	RouteBest RouteKind = "best"
	// RouteWithdrawn: the route of that session has gone.
	RouteWithdrawn RouteKind = "withdrawn"
	// RouteLost: no route for the prefix is left.
	RouteLost RouteKind = "lost"
)

// NoMED is the MED of an event or route that has none.
const NoMED = -1

// A RouteEvent is one line of a router's log that is about a VIP.
type RouteEvent struct {
	Time   time.Time
	Router string
	Kind   RouteKind
	// Session is the node at the other end of the BGP session.
	Session string
	Prefix  netip.Prefix
	// MED, Path (the length of the AS path), NextHop and From are those of the route
	// received, or now best.
	MED, Path     int
	NextHop, From netip.Addr
}

// clockSet is by how much a clock must go back to have been set.
const clockSet = time.Minute

// ParseBirdLog reads the log of a router and returns its route events in order. Where the
// clock was set back, what came before bears the times that the new clock would have given it.
func ParseBirdLog(r io.Reader, router string) []RouteEvent {
	var events []RouteEvent
	var last time.Time
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		when, text, ok := birdLine(lines.Text())
		if !ok {
			continue
		}
		if back := last.Sub(when); back > clockSet {
			for i := range events {
				events[i].Time = events[i].Time.Add(-back)
			}
		}
		last = when
		events = append(events, parseBirdLine(when, text, router)...)
	}
	return events
}

// birdTime is BIRD's `iso long ms`, in local time.
const birdTime = "2006-01-02 15:04:05.000"

func birdLine(line string) (when time.Time, text string, ok bool) {
	if len(line) <= len(birdTime) {
		return when, "", false
	}
	when, err := time.ParseInLocation(birdTime, line[:len(birdTime)], time.Local)
	_, text, _ = strings.Cut(line[len(birdTime):], "> ")
	return when, text, err == nil
}

func parseBirdLine(when time.Time, text, router string) []RouteEvent {
	if rest, ok := strings.CutPrefix(text, "medway "); ok {
		return printedEvent(when, router, rest)
	}
	return removedEvents(when, router, text)
}

// printedEvent reads what the filters of our own configuration print.
func printedEvent(when time.Time, router, text string) []RouteEvent {
	fields := strings.Fields(text)
	e := RouteEvent{Time: when, Router: router, Kind: RouteKind(fields[0]), MED: NoMED}
	for _, f := range fields[1:] {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "router":
			e.Router = value
		case "session":
			e.Session = value
		case "prefix":
			e.Prefix, _ = netip.ParsePrefix(value)
		case "med":
			if med, err := strconv.Atoi(value); err == nil {
				e.MED = med
			}
		case "path":
			e.Path, _ = strconv.Atoi(value)
		case "nexthop":
			e.NextHop, _ = netip.ParseAddr(value)
		case "from":
			e.From, _ = netip.ParseAddr(value)
		}
	}
	return []RouteEvent{e}
}

// removedEvents reads BIRD's own trace of a removal, for which no filter is called:
// "dc1-edge.ipv4 > removed [sole] 203.0.113.10/32 0L 7G unicast". A ">" is a route on
// its way into the table; "[sole]" says that none took its place.
func removedEvents(when time.Time, router, text string) []RouteEvent {
	fields := strings.Fields(text)
	if len(fields) < 4 || fields[1] != ">" || fields[2] != "removed" {
		return nil
	}
	sole := fields[3] == "[sole]"
	at := 3
	if strings.HasPrefix(fields[3], "[") {
		at = 4
	}
	if at >= len(fields) {
		return nil
	}
	prefix, err := netip.ParsePrefix(fields[at])
	if err != nil || !vipNet.Contains(prefix.Addr()) && !vipNet6.Contains(prefix.Addr()) {
		return nil
	}
	session, _, _ := strings.Cut(fields[0], ".")
	e := RouteEvent{Time: when, Router: router, Kind: RouteWithdrawn, Session: session, Prefix: prefix, MED: NoMED}
	if !sole {
		return []RouteEvent{e}
	}
	lost := e
	lost.Kind, lost.Session = RouteLost, ""
	return []RouteEvent{e, lost}
}

// followEvery is how often logs are looked at; events bear BIRD's own times.
const followEvery = 50 * time.Millisecond

// FollowRoutes delivers the route events of the routers (none named: all) from now on,
// until the context ends; then the channel is closed. What happens after it has
// returned is never missed.
func (l *Lab) FollowRoutes(ctx context.Context, routers ...string) (<-chan RouteEvent, error) {
	if len(routers) == 0 {
		routers = l.topo.Routers()
	}
	logs := make([]*birdTail, len(routers))
	for i, router := range routers {
		t, err := tailBird(l.BirdLog(router), router)
		if err != nil {
			for _, opened := range logs[:i] {
				opened.file.Close()
			}
			return nil, err
		}
		logs[i] = t
	}
	events := make(chan RouteEvent, 64)
	go func() {
		defer close(events)
		defer func() {
			for _, t := range logs {
				t.file.Close()
			}
		}()
		tick := time.NewTicker(followEvery)
		defer tick.Stop()
		for {
			var news []RouteEvent
			for _, t := range logs {
				news = append(news, t.read()...)
			}
			slices.SortStableFunc(news, func(a, b RouteEvent) int { return a.Time.Compare(b.Time) })
			for _, e := range news {
				select {
				case events <- e:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return events, nil
}

// birdTail reads a growing log. BIRD appends, also after a restart.
type birdTail struct {
	router  string
	file    *os.File
	partial string
}

func tailBird(path, router string) (*birdTail, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &birdTail{router: router, file: file}, nil
}

func (t *birdTail) read() []RouteEvent {
	data, _ := io.ReadAll(t.file)
	if len(data) == 0 {
		return nil
	}
	text := t.partial + string(data)
	end := strings.LastIndexByte(text, '\n') + 1
	t.partial = text[end:]
	return ParseBirdLog(strings.NewReader(text[:end]), t.router)
}
