package lab

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
)

// WriteStatus prints daemons, sessions and routes as tab-separated columns.
func (l *Lab) WriteStatus(w io.Writer) error {
	daemons, err := l.Daemons()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "NODE\tDAEMON\tPID\tSTATE\tLOG\n")
	for _, d := range daemons {
		state := "runs"
		if !d.Alive() {
			state = "ENDED"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\n", d.Node, d.Name, d.PID, state, d.Log)
	}
	fmt.Fprintf(w, "\nROUTER\tSESSION WITH\tSTATE\n")
	for _, router := range l.topo.Routers() {
		sessions, err := l.Sessions(router)
		if err != nil {
			fmt.Fprintf(w, "%s\t-\t%v\n", router, err)
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(sessions)) {
			fmt.Fprintf(w, "%s\t%s\t%s\n", router, name, sessions[name])
		}
	}
	fmt.Fprintf(w, "\nROUTER\tPREFIX\tFROM\tNEXT HOP\tMED\tHOPS\tBEST\n")
	for _, router := range l.topo.Routers() {
		routes, _ := l.Routes(router) // its error is in the list above
		for _, r := range routes {
			best := ""
			if r.Best {
				best = "*"
			}
			med := "-" // the provider has thrown it away
			if r.MED != NoMED {
				med = strconv.Itoa(r.MED)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", router, r.Prefix, r.Session, r.NextHop, med, r.Path, best)
		}
	}
	return nil
}
