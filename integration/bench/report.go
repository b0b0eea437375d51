package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what one part of the benchmark found.
type Report struct {
	Date    string  `json:"date"`
	Machine Machine `json:"machine"`
	// Versions by program.
	Versions map[string]string `json:"versions"`
	Tables   []Table           `json:"tables"`
	Aims     []Aim             `json:"aims,omitempty"`
	// Missing is what could not be measured, and why.
	Missing []string `json:"missing,omitempty"`
}

// Machine is what the figures were measured on.
type Machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	// Virtual says that an emulated machine was measured.
	Virtual bool `json:"virtual"`
}

// Table is a set of figures that belong together.
type Table struct {
	Title string   `json:"title"`
	Notes []string `json:"notes,omitempty"`
	Rows  []Row    `json:"rows"`
}

// Row is one figure. Durations are in milliseconds.
type Row struct {
	What string  `json:"what"`
	N    int     `json:"n,omitempty"`
	P50  float64 `json:"p50_ms,omitempty"`
	P99  float64 `json:"p99_ms,omitempty"`
	Max  float64 `json:"max_ms,omitempty"`
	// Ratio is P50 over that of the table's reference.
	Ratio float64 `json:"ratio,omitempty"`
	// Value is for what is no duration.
	Value string `json:"value,omitempty"`
}

// Aim is what a figure should be, and is.
type Aim struct {
	Aim string `json:"aim"`
	Got string `json:"got"`
	Met bool   `json:"met"`
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// add appends a row of durations; reference, unless it is empty, is what they
// are compared with.
func (t *Table) add(what string, s, reference Samples) {
	row := Row{What: what, N: len(s), P50: ms(s.Quantile(.5)), P99: ms(s.Quantile(.99)), Max: ms(s.Quantile(1))}
	if base := reference.Quantile(.5); base > 0 {
		row.Ratio = float64(s.Quantile(.5)) / float64(base)
	}
	t.Rows = append(t.Rows, row)
}

func (t *Table) say(what, format string, args ...any) {
	t.Rows = append(t.Rows, Row{What: what, Value: fmt.Sprintf(format, args...)})
}

func (r *Report) missing(what string, err error) {
	r.Missing = append(r.Missing, fmt.Sprintf("%s: %v", what, err))
}

func (r *Report) aim(aim string, met bool, format string, args ...any) {
	r.Aims = append(r.Aims, Aim{Aim: aim, Got: fmt.Sprintf(format, args...), Met: met})
}

// newReport notes date, machine and versions, of our own parts and of programs.
func newReport(bin string, programs ...string) *Report {
	r := &Report{Date: time.Now().UTC().Format(time.RFC3339), Machine: machine(), Versions: map[string]string{}}
	for _, name := range programs {
		program := strings.ToLower(name)
		if name == "etcd" {
			program = filepath.Join(bin, name)
		}
		out, err := exec.Command(program, "--version").CombinedOutput()
		r.Versions[name] = "not there"
		if v := version.Find(out); err == nil && v != nil {
			r.Versions[name] = string(v)
		}
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		r.Versions["Go"] = info.GoVersion
		r.Versions["medway"] = info.Main.Version
		for _, d := range info.Deps {
			if d.Path == "github.com/osrg/gobgp/v4" {
				r.Versions["GoBGP"] = d.Version
			}
		}
	}
	return r
}

var version = regexp.MustCompile(`v?[0-9]+\.[0-9]+(\.[0-9]+)?`)

func machine() Machine {
	m := Machine{CPU: "unknown", Virtual: os.Getenv("MEDWAY_VM") != ""}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				m.CPUs++
			}
		}
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(text))
	}
	return m
}

// Save writes the report of one part below dir.
func (r *Report) Save(dir, part string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, part+".json"), append(data, '\n'), 0o644)
}

// Parts of the benchmark, in the order of the report.
var Parts = []string{"native", "failover", "kernel", "load"}

// Join makes report.json and report.txt of the parts below dir, and prints the
// latter.
func Join(dir string, out io.Writer) error {
	all := map[string]*Report{}
	var text strings.Builder
	for _, part := range Parts {
		data, err := os.ReadFile(filepath.Join(dir, part+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintf(&text, "NOT MEASURED: the part %q did not run to its end.\n\n", part)
			continue
		}
		r := &Report{}
		if err == nil {
			err = json.Unmarshal(data, r)
		}
		if err != nil {
			return err
		}
		all[part] = r
		r.print(&text)
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	err = errors.Join(os.WriteFile(filepath.Join(dir, "report.json"), append(data, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "report.txt"), []byte(text.String()), 0o644))
	_, printed := io.WriteString(out, text.String())
	return errors.Join(err, printed)
}

func (r *Report) print(out io.Writer) {
	where := "this machine"
	if r.Machine.Virtual {
		where = "an emulated machine (about ten times slower than this one: compare within the table only)"
	}
	fmt.Fprintf(out, "On %s: %d x %s, Linux %s, %s\n", where, r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, r.Date)
	var versions []string
	for name, v := range r.Versions {
		versions = append(versions, name+" "+v)
	}
	slices.Sort(versions)
	fmt.Fprintf(out, "%s\n", strings.Join(versions, ", "))
	for _, t := range r.Tables {
		t.print(out)
	}
	for _, a := range r.Aims {
		verdict := "MET   "
		if !a.Met {
			verdict = "MISSED"
		}
		fmt.Fprintf(out, "\n%s  aim: %s; got: %s", verdict, a.Aim, a.Got)
	}
	for _, m := range r.Missing {
		fmt.Fprintf(out, "\nNOT MEASURED  %s", m)
	}
	fmt.Fprint(out, "\n\n")
}

func (t *Table) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s\n", t.Title)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	if slices.ContainsFunc(t.Rows, func(r Row) bool { return r.N > 0 }) {
		fmt.Fprintln(w, "p50 ms\tp99 ms\tmax ms\tn\tratio\t  ")
	}
	for _, r := range t.Rows {
		if r.N == 0 {
			continue
		}
		ratio := ""
		if r.Ratio > 0 {
			ratio = fmt.Sprintf("%.2f", r.Ratio)
		}
		fmt.Fprintf(w, "%.2f\t%.2f\t%.2f\t%d\t%s\t  %s\n", r.P50, r.P99, r.Max, r.N, ratio, r.What)
	}
	w.Flush()
	for _, r := range t.Rows {
		if r.N == 0 {
			fmt.Fprintf(out, "  %s: %s\n", r.What, r.Value)
		}
	}
	for _, note := range t.Notes {
		fmt.Fprintf(out, "  (%s)\n", note)
	}
}
