package sipp

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Event is one line of a run's log.
type Event struct {
	At      time.Time
	CallID  string
	What    string // "up", "alive", "down" or "registered"
	Backend string // that answered the INVITE or REGISTER
	Now     string // that gave this answer
}

// ReadLog reads what the calls of a run have logged so far. A last line that is still being written is left out.
func ReadLog(dir string) ([]Event, error) {
	text, err := os.ReadFile(filepath.Join(dir, LogFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // SIPp makes it with the first line
	}
	if err != nil {
		return nil, err
	}
	var out []Event
	for {
		line, rest, whole := bytes.Cut(text, []byte("\n"))
		if !whole {
			return out, nil
		}
		text = rest
		// date, time, seconds since 1970, call, what, backend, now
		f := strings.Fields(string(line))
		if len(f) != 7 {
			return out, fmt.Errorf("log line %q: want 7 fields", line)
		}
		sec, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			return out, fmt.Errorf("log line %q: %w", line, err)
		}
		out = append(out, Event{
			At:     time.UnixMicro(int64(sec * 1e6)),
			CallID: f[3], What: f[4], Backend: f[5], Now: f[6],
		})
	}
}

// Calls is the latest state of every call in a log.
type Calls struct {
	Up      map[string]int // calls per backend whose dialogue has not ended with BYE, seen since a given time
	Silent  int            // up, but without an answer since then
	Down    map[string]int // calls per backend that ended with BYE
	Strayed int            // calls with an answer from another backend than their own
}

// Summarize counts the calls. One that has not been answered since the given time is silent; with a time three
// Pauses ago, silence means trouble. A failed call is silent for ever.
func Summarize(events []Event, since time.Time) Calls {
	c := Calls{Up: map[string]int{}, Down: map[string]int{}}
	last, strayed := map[string]Event{}, map[string]bool{}
	for _, e := range events {
		last[e.CallID] = e
		if e.Backend != e.Now {
			strayed[e.CallID] = true
		}
	}
	for _, e := range last {
		switch {
		case e.What == "down" || e.What == "registered":
			c.Down[e.Backend]++
		case e.At.Before(since):
			c.Silent++
		default:
			c.Up[e.Backend]++
		}
	}
	c.Strayed = len(strayed)
	return c
}

// Stats are SIPp's own totals. During a run, Current counts the calls that are up.
type Stats struct {
	Created, Current, Successful, Failed int
	Why                                  map[string]int // SIPp's reasons, such as "FailedTcpClosed"
}

// ReadStats reads the last whole row of a run's statistics.
func ReadStats(dir string) (Stats, error) {
	f, err := os.Open(filepath.Join(dir, StatFile))
	if err != nil {
		return Stats{}, err
	}
	defer f.Close()
	r := csv.NewReader(bufio.NewReader(f))
	r.Comma, r.FieldsPerRecord, r.LazyQuotes = ';', -1, true
	head, err := r.Read()
	if err != nil {
		return Stats{}, err
	}
	var last []string
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Stats{}, err
		}
		if len(row) >= len(head) {
			last = row
		}
	}
	if last == nil {
		return Stats{}, errors.New("no row in the statistics yet")
	}
	return stats(head, last)
}

func stats(head, row []string) (Stats, error) {
	s := Stats{Why: map[string]int{}}
	to := map[string]*int{
		"TotalCallCreated": &s.Created, "CurrentCall": &s.Current, "SuccessfulCall(C)": &s.Successful, "FailedCall(C)": &s.Failed,
	}
	for i, name := range head {
		reason, cumulative := strings.CutSuffix(name, "(C)")
		target := to[name]
		if target == nil && (!cumulative || !strings.HasPrefix(reason, "Failed")) {
			continue
		}
		n, err := strconv.Atoi(row[i])
		if err != nil {
			return s, fmt.Errorf("statistics column %s: %w", name, err)
		}
		if target != nil {
			*target = n
		} else if n > 0 {
			s.Why[reason] = n
		}
	}
	return s, nil
}
