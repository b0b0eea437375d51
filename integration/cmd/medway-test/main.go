// Command medway-test runs every test of the project and counts them: first all
// packages on this machine, then, on a kernel that has IPVS, exactly those
// tests that this machine's kernel made skip. Run it through `make test`.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const module = "github.com/medway-lb/medway/"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &run{ctx: ctx, outcome: map[test]string{}, output: map[test]*strings.Builder{}}
	if err := r.all(); err != nil {
		fmt.Fprintln(os.Stderr, "medway-test:", err)
		stop()
		os.Exit(2) //nolint:gocritic // stop has been called
	}
	if !r.summary() {
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

// test is a test, or with an empty name a package.
type test struct{ pkg, name string }

func (t test) String() string {
	return strings.TrimSuffix(strings.TrimPrefix(t.pkg, module)+" "+t.name, " ")
}

func (t test) top() bool { return t.name != "" && !strings.Contains(t.name, "/") }

// event is a line of test2json.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type run struct {
	ctx context.Context
	// outcome is "pass", "fail" or "skip"; what is run again counts anew.
	outcome map[test]string
	output  map[test]*strings.Builder
	// why has the first lines of what failed, to be said again at the end.
	why []string
	// each says whether to show every test that passes, not only packages.
	each bool
}

func (r *run) all() error {
	fmt.Println("[test] build (the first time takes minutes)")
	// Compilers beside tests of BFD would be what these miss their turns for.
	if out, err := exec.CommandContext(r.ctx, "go", "test", "-run=^$", "-p=2", "./...").CombinedOutput(); err != nil {
		os.Stdout.Write(out) // and go on: what does build is worth a run
	}
	fmt.Println("[test] on this machine")
	// Two packages at a time is what two cores carry.
	here := exec.CommandContext(r.ctx, "go", "test", "-json", "-count=1", "-p=2", "-timeout=20m", "./...")
	if err := r.follow(here, ""); err != nil {
		return err
	}
	again := map[string][]string{}
	for t, outcome := range r.outcome {
		if outcome == "skip" && t.top() {
			again[t.pkg] = append(again[t.pkg], t.name)
		}
	}
	if len(again) == 0 {
		return nil
	}
	fmt.Println("[test] what was skipped for want of a kernel, on one that has it")
	r.each = true
	bin, err := filepath.Abs(filepath.Join(cache(), "out/test"))
	if err != nil {
		return err
	}
	for _, pkg := range slices.Sorted(maps.Keys(again)) {
		if err := r.elsewhere(pkg, again[pkg], bin); err != nil {
			return err
		}
	}
	return nil
}

// elsewhere builds a package's tests and runs some of them on another kernel,
// where a skip is a failure.
func (r *run) elsewhere(pkg string, names []string, dir string) error {
	binary := filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(pkg, module), "/", "-")+".test")
	build := exec.CommandContext(r.ctx, "go", "test", "-c", "-o", binary, pkg)
	// Static, so that it runs whatever libc the other kernel's system has.
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the tests of %s: %w", pkg, err)
	}
	slices.Sort(names)
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(r.ctx, filepath.Join(root, "scripts/with-kernel.sh"), filepath.Join(root, "scripts/test-inside.sh"), binary,
		"-test.v=test2json", "-test.timeout=60m", "-test.run=^("+strings.Join(names, "|")+")$")
	cmd.Dir = strings.TrimPrefix(pkg, module)
	cmd.Env = append(os.Environ(), "MEDWAY_REQUIRE_KERNEL=1", "MEDWAY_BIN="+filepath.Join(root, "bin"))
	text, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	converter := exec.CommandContext(r.ctx, "go", "tool", "test2json", "-t", "-p", pkg)
	converter.Stdin = text
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := r.follow(converter, pkg); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil && r.outcome[test{pkg: pkg}] != "fail" {
		// It failed without saying which test: the machine did not come up, or the program died.
		r.fail(test{pkg: pkg}, fmt.Sprintf("%s: %v\n", path.Base(binary), err))
	}
	return nil
}

// follow reads a program's test2json to its end. The program's own exit status
// says nothing that the events don't.
func (r *run) follow(cmd *exec.Cmd, pkg string) error {
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			os.Stdout.Write(line)
			continue
		}
		if e.Package == "" {
			e.Package = pkg
		}
		r.take(e)
	}
	_ = cmd.Wait()
	return r.ctx.Err()
}

func (r *run) take(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "output":
		if r.output[t] == nil {
			r.output[t] = &strings.Builder{}
		}
		r.output[t].WriteString(e.Output)
		if figures.MatchString(e.Output) {
			fmt.Printf("      %s\n", strings.TrimSpace(where.ReplaceAllString(e.Output, "")))
		}
		return
	case "pass", "skip", "fail":
	case "build-output":
		fmt.Print(e.Output)
		return
	default:
		return
	}
	took := time.Duration(e.Elapsed * float64(time.Second)).Round(100 * time.Millisecond)
	switch {
	case e.Action == "fail":
		text := ""
		if r.output[t] != nil {
			text = r.output[t].String()
		}
		r.fail(t, text)
	case e.Action == "skip" && t.top() && !r.each:
		fmt.Printf("later %s\n", t)
	case e.Action == "pass" && (t.name == "" || r.each && t.top()):
		fmt.Printf("ok    %-70s %8s\n", t, took)
	}
	r.outcome[t] = e.Action
	delete(r.output, t)
}

func (r *run) fail(t test, text string) {
	fmt.Printf("FAIL  %s\n%s", t, text)
	r.outcome[t] = "fail"
	if t.name == "" {
		return
	}
	r.why = append(r.why, "FAILED  "+t.String())
	for line := range strings.Lines(text) {
		// What a test logs looks like what it complains of; agents' logs, the longest, are left out.
		if said := where.FindString(line); said != "" && !strings.Contains(said, "scenario_test.go:") {
			r.why = append(r.why, fmt.Sprintf("        %.300s", strings.TrimSpace(line)))
		}
	}
}

// figures is a line that is shown though its test passes: how much the simulator did.
var figures = regexp.MustCompile(`: \d+ schedules in |: \d+ of \d+ planted faults caught`)

// where is the beginning of a line that a test printed.
var where = regexp.MustCompile(`^\s+\w+_test\.go:\d+:`)

// summary prints the one line that counts, and tells whether all is well.
func (r *run) summary() bool {
	count := map[string]int{}
	failed := map[string]bool{}
	for t, outcome := range r.outcome {
		if t.top() {
			count[outcome]++
			failed[t.pkg] = failed[t.pkg] || outcome == "fail"
		}
	}
	for t, outcome := range r.outcome {
		switch {
		case outcome == "skip" && t.top():
			fmt.Printf("SKIPPED %s\n", t)
		case outcome == "fail" && t.name == "" && !failed[t.pkg]:
			count["fail"]++ // it did not build, or died
		}
	}
	for _, line := range r.why {
		fmt.Println(line)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
	return count["fail"] == 0 && count["skip"] == 0 && count["pass"] > 0
}

// cache is the folder that the virtual machine shares.
func cache() string {
	if dir := os.Getenv("MEDWAY_CACHE"); dir != "" {
		return dir
	}
	return ".cache"
}
