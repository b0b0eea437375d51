package drill

import (
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// draw returns the picture's texts and how many lines it draws. It must be
// well-formed, and every number in it one.
func draw(t *testing.T, r Report, sites ...string) (texts []string, paths int) {
	t.Helper()
	var b strings.Builder
	if err := r.Picture(&b, sites); err != nil {
		t.Fatal(err)
	}
	if bad := regexp.MustCompile(`NaN|Inf`).FindString(b.String()); bad != "" {
		t.Errorf("%s in the picture:\n%s", bad, b.String())
	}
	d := xml.NewDecoder(strings.NewReader(b.String()))
	for depth := 0; ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return texts, paths
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, b.String())
		}
		switch e := token.(type) {
		case xml.StartElement:
			if depth++; depth == 1 && e.Name != (xml.Name{Space: "http://www.w3.org/2000/svg", Local: "svg"}) {
				t.Errorf("the root is %v, expected svg", e.Name)
			}
			if e.Name.Local == "path" {
				paths++
			}
		case xml.EndElement:
			depth--
		case xml.CharData:
			if text := strings.TrimSpace(string(e)); text != "" {
				texts = append(texts, text)
			}
		}
	}
}

// sampled is a good report with a minute's samples of four hosts, of which one in each site carries packets.
func sampled() Report {
	r := good()
	for i := range 120 {
		at := r.Started.Add(time.Duration(i) * 500 * time.Millisecond)
		r.Samples = append(r.Samples,
			Sample{At: at, Node: "dc1-lvs-a", Connections: 60, Packets: uint64(10 * i)},
			Sample{At: at, Node: "dc1-lvs-b", Connections: 50},
			Sample{At: at, Node: "dc2-lvs-a", Connections: 60, Packets: uint64(i)},
			Sample{At: at, Node: "dc2-lvs-b", Connections: 60})
	}
	return r
}

func demandTexts(t *testing.T, texts []string, want ...string) {
	t.Helper()
	all := "\n" + strings.Join(texts, "\n") + "\n"
	for _, w := range want {
		if !strings.Contains(all, "\n"+w+"\n") {
			t.Errorf("%q is not among the texts %q", w, texts)
		}
	}
}

func TestPictureNamesWhatItShows(t *testing.T) {
	texts, paths := draw(t, sampled(), "dc1", "dc2")
	if paths != 8 {
		t.Errorf("%d lines, expected one for each site in two panels and one for each host in the third", paths)
	}
	demandTexts(t, texts, "2 live SIP calls moved between data centres: 0 lost", "put dc2", "dc1", "dc2", "dc1-lvs-a, owner", "dc1-lvs-b", "dc2-lvs-a, owner", "dc2-lvs-b",
		"MED of each site's owner, and of its standby (thin), as its edge router hears it (lower wins)", "50", "100", "500", "seconds")
}

// A site's packets are those of all its hosts, and of its connections only those
// count that every host knows.
func TestPictureAddsHostsUp(t *testing.T) {
	r := sampled()
	x := func(at time.Time) float64 { return at.Sub(r.Started).Seconds() }
	for i := range r.Samples {
		if r.Samples[i].Node == "dc1-lvs-b" {
			r.Samples[i].Packets = uint64(r.Samples[i].At.Sub(r.Started).Seconds())
		}
	}
	last := func(p panel) []float64 {
		var out []float64
		for _, l := range p.lines {
			out = append(out, l.points[len(l.points)-1].y)
		}
		return out
	}
	if got, want := last(r.packets([]string{"dc1", "dc2"}, x)), []float64{21, 2}; !slices.Equal(got, want) {
		t.Errorf("packets per second %v, expected %v", got, want)
	}
	if got, want := last(r.connections([]string{"dc1", "dc2"}, x)), []float64{50, 60}; !slices.Equal(got, want) {
		t.Errorf("connections %v, expected %v", got, want)
	}
	thin := map[string]bool{}
	for _, l := range r.meds([]string{"dc1", "dc2"}, x).lines {
		thin[l.label] = l.thin
	}
	if want := map[string]bool{"dc1-lvs-a, owner": false, "dc1-lvs-b": true, "dc2-lvs-a, owner": false, "dc2-lvs-b": true}; !maps.Equal(thin, want) {
		t.Errorf("thin lines %v, expected %v", thin, want)
	}
}

func TestPictureOfNothing(t *testing.T) {
	still := good()
	still.Samples = []Sample{{At: still.Started, Node: "dc1-lvs-a"}}
	reset := sampled()
	reset.Samples = append(reset.Samples, reset.Samples...) // time stands still, and goes back
	for name, r := range map[string]Report{"empty": {}, "one sample": still, "no samples": good(), "times out of order": reset} {
		for _, sites := range [][]string{nil, {"dc1", "dc2"}, {"dc1", "dc2", "dc3", "dc4", "dc5"}} {
			t.Run(name, func(t *testing.T) { _, _ = draw(t, r, sites...) })
		}
	}
}

func TestPictureEscapesNames(t *testing.T) {
	r := sampled()
	r.Switches[0].To = `<dc2> & "co"`
	for i := range r.Samples {
		r.Samples[i].Node = strings.Replace(r.Samples[i].Node, "dc2", "d<c&2", 1)
	}
	texts, _ := draw(t, r, "dc1", `d<c&2`)
	demandTexts(t, texts, `put <dc2> & "co"`, `d<c&2`)
}

func TestNiceTicks(t *testing.T) {
	for _, test := range []struct {
		top  float64
		n    int
		want []float64
	}{
		{1, 4, []float64{0, 0.5, 1}},
		{60, 4, []float64{0, 20, 40, 60}},
		{100, 8, []float64{0, 20, 40, 60, 80, 100}},
	} {
		got := niceTicks(test.top, test.n)
		if len(got) != len(test.want) {
			t.Errorf("%g: got %v, want %v", test.top, got, test.want)
			continue
		}
		for i := range got {
			if got[i] != test.want[i] {
				t.Errorf("%g: got %v, want %v", test.top, got, test.want)
			}
		}
	}
}
