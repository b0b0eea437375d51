package drill

import (
	"fmt"
	"html"
	"io"
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
	step          bool
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
	return linear("Packets per second from the phones, through each site's LVS", r.lines(sites, x, func(before, now Sample) float64 {
		return float64(now.Packets-before.Packets) / now.At.Sub(before.At).Seconds()
	}))
}

func (r Report) connections(sites []string, x func(time.Time) float64) panel {
	return linear("Connections known to each site's LVS (IPVS sync keeps both complete)", r.lines(sites, x, func(_, now Sample) float64 {
		return float64(now.Connections)
	}))
}

// window is the time over which a rate is taken: calls speak every 2 s.
const window = 2 * time.Second

// lines makes a line per site out of the samples of its hosts; each value is
// made of a host's sample and of its last one that is a window older.
func (r Report) lines(sites []string, x func(time.Time) float64, value func(before, now Sample) float64) []line {
	var out []line
	for i, site := range sites {
		l := line{label: site, colour: palette[i%len(palette)]}
		past := map[string][]Sample{}
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
				l.points = append(l.points, point{x(s.At), value(p[0], s)})
			}
		}
		out = append(out, l)
	}
	return out
}

// meds draws what the edge routers heard, on a scale of logarithms: 50, 100
// and 500 are what matters.
func (r Report) meds(sites []string, x func(time.Time) float64) panel {
	p := panel{
		title: "MED of each site, as its edge router hears it (lower wins)",
		ticks: []float64{50, 100, 500},
		scale: func(v float64) float64 {
			return (math.Log(math.Max(v, 40)) - math.Log(40)) / (math.Log(700) - math.Log(40))
		},
	}
	for i, site := range sites {
		l := line{label: site, colour: palette[i%len(palette)], step: true}
		med := 500.0
		if i == 0 {
			med = 100
		}
		l.points = append(l.points, point{0, med})
		for _, s := range r.Switches {
			for _, step := range s.steps(lab.VIP) {
				if step.Site == site {
					l.points = append(l.points, point{x(s.Put.Add(step.After)), float64(step.MED)})
				}
			}
		}
		l.points = append(l.points, point{plotWidth, l.points[len(l.points)-1].y})
		p.lines = append(p.lines, l)
	}
	return p
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
		fmt.Fprintf(b, `<path d="%s" fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round"/>`+"\n", path.String(), l.colour)
		at := y(l.points[len(l.points)-1].y)
		for slices.ContainsFunc(labels, func(other float64) bool { return math.Abs(other-at) < 14 }) {
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
