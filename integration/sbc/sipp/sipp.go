// Package sipp holds the SIPp scenarios of the lab, how SIPp 3.6 is called with them, and how its files are read.
//
// A run has a directory of its own: SIPp is started in it, reads the scenarios and the file "until" there, and leaves
// log, stat and errors in it.
package sipp

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

//go:embed *.xml
var scenarios embed.FS

// Scenario is one of the embedded scenarios.
type Scenario string

// The scenarios.
const (
	Call     Scenario = "call"     // a call with an INFO every Pause, until End
	NewCalls Scenario = "newcalls" // INVITE, one INFO after Pause, BYE
	Register Scenario = "register" // one REGISTER
)

// Files that a run leaves in its directory.
const (
	LogFile   = "log"    // for ReadLog; written line by line
	StatFile  = "stat"   // for ReadStats; a row a second and one at the end
	ErrorFile = "errors" // SIPp's own words on unexpected messages; absent when there were none
	untilFile = "until"
)

// Run says how SIPp is called.
type Run struct {
	Scenario Scenario
	Target   string        // host:port
	Local    string        // address to call from; may be empty for TCP
	UDP      bool          // instead of TCP; one socket per call either way
	Calls    int           // in all, and at the same time
	Rate     int           // new calls per second
	Pause    time.Duration // between the in-dialogue requests of a call
	Answer   time.Duration // how long an answer may take before the call counts as failed
	Timeout  time.Duration // of the whole run, a safety net: reaching it is a failure. 0 for none
}

// Prepare writes the scenarios and the word that keeps calls up into a run's directory.
func Prepare(dir string) error {
	entries, err := scenarios.ReadDir(".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, err := scenarios.ReadFile(e.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, e.Name()), text, 0o644); err != nil {
			return err
		}
	}
	return say(dir, "go")
}

// End tells the calls of a run to end: each says BYE within its Pause, and SIPp exits when all have.
func End(dir string) error { return say(dir, "end") }

// say replaces the file in one step: SIPp ends with an error when it is missing.
func say(dir, word string) error {
	path := filepath.Join(dir, untilFile)
	if err := os.WriteFile(path+".new", []byte(word+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Args is the command line of sipp, to be run in the directory that was prepared. SIPp's exit status is 0 only if
// every call succeeded, and 1 if at least one failed. A reset connection ends SIPp 3.6.1 at once with status 255,
// the calls that were well included; the log then tells what was up.
func (r Run) Args() ([]string, error) {
	if r.Calls < 1 || r.Rate < 1 || r.Answer <= 0 {
		return nil, errors.New("calls, rate and answer must be positive")
	}
	transport := "tn"
	if r.UDP {
		if r.Local == "" {
			return nil, errors.New("UDP needs a local address: without one SIPp 3.6 binds its second socket in vain")
		}
		transport = "un"
	}
	args := []string{
		r.Target, "-sf", string(r.Scenario) + ".xml", "-t", transport, "-nostdin",
		"-m", strconv.Itoa(r.Calls), "-l", strconv.Itoa(r.Calls), "-r", strconv.Itoa(r.Rate),
		"-max_socket", strconv.Itoa(2*r.Calls + 100), // SIPp shares sockets between calls beyond this
		"-d", millis(r.Pause), "-recv_timeout", millis(r.Answer),
		// A connection that ends is a failed call, never a new connection. (With -reconnect_close SIPp 3.6.1
		// fails calls whose connections are well.)
		"-max_reconnect", "0",
		// SIPp gives up when its own clock stalls, as it does on an emulated CPU.
		"-watchdog_minor_maxtriggers", "1000000", "-watchdog_major_maxtriggers", "1000000",
		"-trace_logs", "-log_file", LogFile, "-trace_err", "-error_file", ErrorFile,
		"-trace_stat", "-stf", StatFile, "-fd", "1",
	}
	if r.Local != "" {
		args = append(args, "-i", r.Local)
	}
	if r.Timeout > 0 {
		args = append(args, "-timeout", fmt.Sprintf("%ds", int(r.Timeout/time.Second)), "-timeout_error")
	}
	return args, nil
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
