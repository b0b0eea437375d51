package drill

import (
	"fmt"
	"html"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/medway-lb/medway/integration/lab"
)

// The picture's measures in pixels.
const (
	pictureWidth  = 960
	panelHeight   = 150
	panelGap      = 46
	marginLeft    = 64
	marginRight   = 150
	marginTop     = 88
	plotWidth     = pictureWidth - marginLeft - marginRight
	pictureHeight = marginTop + 3*panelHeight + 2*panelGap + 60
)

// palette tells sites apart, also without colours: the lines are labelled.
var palette = []string{"#0b6e99", "#d9730d", "#6940a5", "#0f7b6c"}

type point struct{ x, y float64 }

type line struct {
	label, colour string
	points        []point
	// step: it stays until it jumps. thin: beside what matters.
	step, thin bool
}

type panel struct {
	title string
	lines []line
	// ticks are the values to name on the axis; scale maps a value to 0..1.
	ticks []float64
	scale func(float64) float64
}

// Picture draws a report as SVG: packets and connections of each site, and the
// MEDs that its edge router heard, over time.
func (r Report) Picture(w io.Writer, sites []string) error {
	end := r.Started
	for _, s := range r.Samples {
		if s.At.After(end) {
			end = s.At
		}
	}
	span := max(end.Sub(r.Started).Seconds(), 1)
	x := func(t time.Time) float64 { return t.Sub(r.Started).Seconds() / span * plotWidth }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="DejaVu Sans, sans-serif" font-size="12">`+"\n",
		pictureWidth, pictureHeight, pictureWidth, pictureHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	text(&b, marginLeft, 26, "start", "#111111", 17, fmt.Sprintf("%d live SIP calls moved between data centres: %d lost", r.Established(), r.Lost()))
	text(&b, marginLeft, 46, "start", "#555555", 12, "each dashed line is one `etcdctl put` of target_state")
	for i, p := range []panel{r.packets(sites, x), r.connections(sites, x), r.meds(sites, x)} {
		top := float64(marginTop + i*(panelHeight+panelGap))
		p.draw(&b, top)
		for _, s := range r.Switches {
			at := marginLeft + x(s.Put)
			fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#888888" stroke-dasharray="4 3"/>`+"\n", at, top, at, top+panelHeight)
			if i == 0 {
				text(&b, at+4, top+12, "start", "#555555", 11, "put "+s.To)
			}
		}
	}
	bottom := float64(marginTop + 3*panelHeight + 2*panelGap)
	for _, seconds := range niceTicks(span, 8) {
		text(&b, marginLeft+seconds/span*plotWidth, bottom+18, "middle", "#555555", 11, fmt.Sprintf("%g", seconds))
	}
	text(&b, marginLeft+plotWidth/2, bottom+38, "middle", "#555555", 12, "seconds")
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (r Report) packets(sites []string, x func(time.Time) float64) panel {
	return linear("Packets per second from the phones, through each site's LVS hosts", r.lines(sites, x, func(hosts map[string]change) (sum float64) {
		for _, h := range hosts {
			sum += float64(h.now.Packets-h.before.Packets) / h.now.At.Sub(h.before.At).Seconds()
		}
		return sum
	}))
}

func (r Report) connections(sites []string, x func(time.Time) float64) panel {
	return linear("Connections known to every LVS host of a site (IPVS sync keeps all complete)", r.lines(sites, x, func(hosts map[string]change) float64 {
		least := math.MaxInt
		for _, h := range hosts {
			least = min(least, h.now.Connections)
		}
		return float64(least)
	}))
}

// window is the time over which a rate is taken: calls speak every 2 s.
const window = 2 * time.Second

// change is a host's sample and its last one that is a window older.
type change struct{ before, now Sample }

// lines makes a line per site out of the samples of its hosts: a point wherever one
// of them was sampled, made of the latest samples of all.
func (r Report) lines(sites []string, x func(time.Time) float64, value func(hosts map[string]change) float64) []line {
	var out []line
	for i, site := range sites {
		l := line{label: site, colour: palette[i%len(palette)]}
		past, hosts := map[string][]Sample{}, map[string]change{}
		for _, s := range r.Samples {
			if !strings.HasPrefix(s.Node, site+"-") {
				continue
			}
			past[s.Node] = append(past[s.Node], s)
			p := past[s.Node]
			for len(p) > 1 && s.At.Sub(p[1].At) >= window {
				p = p[1:]
			}
			past[s.Node] = p
			if s.At.Sub(p[0].At) >= window {
				hosts[s.Node] = change{p[0], s}
			}
			if len(hosts) > 0 && len(hosts) == len(past) {
				l.points = append(l.points, point{x(s.At), value(hosts)})
			}
		}
		out = append(out, l)
	}
	return out
}

// meds draws what the edge routers heard from each host, on a scale of logarithms:
// 50, 100 and 500 are what matters.
func (r Report) meds(sites []string, x func(time.Time) float64) panel {
	p := panel{
		title: "MED of each site's owner, and of its standby (thin), as its edge router hears it (lower wins)",
		ticks: []float64{50, 100, 500},
		scale: func(v float64) float64 {
			return (math.Log(math.Max(v, 40)) - math.Log(40)) / (math.Log(700) - math.Log(40))
		},
	}
	for _, before := range r.Before {
		i := slices.Index(sites, before.Site)
		if i < 0 {
			continue
		}
		l := line{label: before.Node, colour: palette[i%len(palette)], step: true, thin: !r.owned(before.Node)}
		if !l.thin {
			l.label += ", owner"
		}
		l.points = append(l.points, point{0, float64(before.MED)})
		for _, e := range r.Routes {
			if e.Kind == lab.RouteReceived && e.Session == before.Node && e.Prefix.Addr() == lab.VIP {
				l.points = append(l.points, point{max(x(e.Time), 0), float64(e.MED)})
			}
		}
		l.points = append(l.points, point{plotWidth, l.points[len(l.points)-1].y})
		p.lines = append(p.lines, l)
	}
	return p
}

// owned says whether a host owned the VIP in its site at a switch.
func (r Report) owned(host string) bool {
	return slices.ContainsFunc(r.Switches, func(s Switch) bool {
		return slices.Contains(slices.Collect(maps.Values(s.Owners)), host)
	})
}

func linear(title string, lines []line) panel {
	top := 1.0
	for _, l := range lines {
		for _, pt := range l.points {
			top = max(top, pt.y)
		}
	}
	ticks := niceTicks(top*1.05, 4)
	return panel{title: title, lines: lines, ticks: ticks, scale: func(v float64) float64 { return v / (top * 1.1) }}
}

// niceTicks are about n round values from 0 to top.
func niceTicks(top float64, n int) []float64 {
	step := math.Pow(10, math.Floor(math.Log10(top/float64(n))))
	for _, factor := range []float64{1, 2, 5, 10} {
		if top/(step*factor) <= float64(n) {
			step *= factor
			break
		}
	}
	var out []float64
	for v := 0.0; v <= top; v += step {
		out = append(out, v)
	}
	return out
}

func (p panel) draw(b *strings.Builder, top float64) {
	y := func(v float64) float64 { return top + panelHeight*(1-p.scale(v)) }
	text(b, marginLeft, top-8, "start", "#111111", 13, p.title)
	fmt.Fprintf(b, `<rect x="%d" y="%.1f" width="%d" height="%d" fill="#f7f7f5"/>`+"\n", marginLeft, top, plotWidth, panelHeight)
	for _, v := range p.ticks {
		fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/>`+"\n", marginLeft, y(v), marginLeft+plotWidth, y(v))
		text(b, marginLeft-8, y(v)+4, "end", "#555555", 11, fmt.Sprintf("%g", v))
	}
	var labels []float64
	for _, l := range p.lines {
		if len(l.points) == 0 {
			continue
		}
		var path strings.Builder
		for i, pt := range l.points {
			px, py := marginLeft+pt.x, y(pt.y)
			switch {
			case i == 0:
				fmt.Fprintf(&path, "M%.1f %.1f", px, py)
			case l.step:
				fmt.Fprintf(&path, "H%.1f V%.1f", px, py)
			default:
				fmt.Fprintf(&path, "L%.1f %.1f", px, py)
			}
		}
		stroke := `stroke-width="2"`
		if l.thin {
			stroke = `stroke-width="1" stroke-opacity="0.6"`
		}
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" %s stroke-linejoin="round"/>`+"\n", path.String(), l.colour, stroke)
		at := y(l.points[len(l.points)-1].y)
		for slices.ContainsFunc(labels, func(other float64) bool { return math.Abs(other-at) < 12 }) {
			at += 14
		}
		labels = append(labels, at)
		text(b, marginLeft+plotWidth+8, at+4, "start", l.colour, 12, l.label)
	}
}

func text(b *strings.Builder, x, y float64, anchor, colour string, size int, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" font-size="%d">%s</text>`+"\n",
		x, y, anchor, colour, size, html.EscapeString(s))
}
