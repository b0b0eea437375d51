package console

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

const (
	plotTime   = time.Hour
	plotWidth  = 600.0
	plotHeight = 100.0
	// gap is how far apart points may be that a line joins.
	gap = time.Minute
)

// plot is a picture of the last hour.
type plot struct {
	Of    string // what the numbers are
	Max   uint64 // at the top
	Lines []line
	// Words are for who does not see it.
	Words string
}

type line struct {
	Site string
	// Class is the look: of the n-th site.
	Class string
	// Path is in units of the picture, 600 by 100.
	Path string
	Last uint64
	// Old says that the last point is not of this moment.
	Old bool
}

// plots are the packets and the connections of a VIP; none where nothing is known.
func plots(trend map[string][]Point, now time.Time) (out []plot) {
	if len(trend) == 0 {
		return nil
	}
	for _, of := range []struct {
		name  string
		value func(Point) uint64
	}{
		{"packets a second", func(p Point) uint64 { return p.PacketsPerSecond }},
		{"connections", func(p Point) uint64 { return p.Connections }},
	} {
		p := plot{Of: of.name}
		highest := uint64(0)
		for _, points := range trend {
			for _, point := range points {
				highest = max(highest, of.value(point))
			}
		}
		p.Max = ceiling(highest)
		var parts []string
		for i, site := range slices.Sorted(maps.Keys(trend)) {
			l := line{Site: site, Class: fmt.Sprintf("site%d", 1+i%4)}
			low, high := uint64(math.MaxUint64), uint64(0)
			var before time.Time
			var path strings.Builder
			for _, point := range trend[site] {
				x := plotWidth * (1 - float64(now.Sub(point.At))/float64(plotTime))
				if x < 0 {
					continue
				}
				value := of.value(point)
				command := "L"
				if point.At.Sub(before) > gap {
					command = "M"
				}
				fmt.Fprintf(&path, "%s%.1f %.1f", command, x, plotHeight*(1-float64(value)/float64(p.Max)))
				before, l.Last = point.At, value
				low, high = min(low, value), max(high, value)
			}
			if path.Len() == 0 {
				continue
			}
			l.Path, l.Old = path.String(), now.Sub(before) > gap
			p.Lines = append(p.Lines, l)
			parts = append(parts, fmt.Sprintf("%s between %s and %s, last %s", site, grouped(low), grouped(high), grouped(l.Last)))
		}
		p.Words = strings.ToUpper(of.name[:1]) + of.name[1:] + " of the last hour: " + strings.Join(parts, "; ")
		if len(p.Lines) > 0 {
			out = append(out, p)
		}
	}
	return out
}

// ceiling is a round number that is not less: 1, 2 or 5 and zeros.
func ceiling(n uint64) uint64 {
	for unit := uint64(1); unit < math.MaxUint64/100; unit *= 10 {
		for _, round := range []uint64{1, 2, 5} {
			if n <= round*unit {
				return round * unit
			}
		}
	}
	return n
}

// grouped is a number with its thousands apart.
func grouped(n uint64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "\u202f" + text[i:]
	}
	return text
}
