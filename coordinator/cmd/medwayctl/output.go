package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// form is how an answer is written: a table for people, or for programs.
type form string

var forms = []string{"table", "json", "yaml"}

func (f *form) flag(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(f), "output", "o", "table", strings.Join(forms[:2], ", ")+" or "+forms[2])
	completeWith(cmd, "output", forms...)
}

func (f *form) check() error {
	if !slices.Contains(forms, string(*f)) {
		return fmt.Errorf("flag --output: value %q: expected table, json or yaml", *f)
	}
	return nil
}

// forPeople tells that nobody parses it.
func (f *form) forPeople() bool { return *f == "table" }

// write writes a document for programs, or has the table written.
func (f *form) write(out io.Writer, document any, table func() error) error {
	if f.forPeople() {
		return table()
	}
	text, err := documentJSON(document)
	if err != nil {
		return err
	}
	if *f == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err == nil {
		_, err = fmt.Fprintf(out, "%s\n", bytes.TrimSuffix(text, []byte("\n")))
	}
	return err
}

// writeLine is write of one of many documents: JSON on a line, or YAML after a mark.
func (f *form) writeLine(out io.Writer, document any, line func() error) error {
	if *f == "yaml" {
		fmt.Fprintln(out, "---")
	}
	if *f != "json" {
		return f.write(out, document, line)
	}
	text, err := documentJSON(document)
	if err != nil {
		return err
	}
	var short bytes.Buffer
	if err := json.Compact(&short, text); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", &short)
	return err
}

// documentJSON is a document in the names of the API.
func documentJSON(document any) ([]byte, error) {
	var text []byte
	var err error
	if m, ok := document.(proto.Message); ok {
		text, err = protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	} else {
		text, err = json.Marshal(document)
	}
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Indent(&out, text, "", "  ") // whose spaces are not what protojson makes of them today
	return out.Bytes(), err
}

// display shows how something goes on.
type display interface {
	line(text string)
	close()
}

// showing is a display that fits: on a terminal one line that changes, elsewhere a line
// for each change.
func showing(out io.Writer) display {
	if f, ok := out.(interface{ Fd() uintptr }); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			return &terminal{out: out, began: time.Now(), width: int(size.Col)}
		}
	}
	return &plainLines{out: out, began: time.Now()}
}

type plainLines struct {
	out   io.Writer
	began time.Time
	last  string
}

func (l *plainLines) line(text string) {
	if text != l.last {
		fmt.Fprintf(l.out, "%5.1fs  %s\n", time.Since(l.began).Seconds(), text)
		l.last = text
	}
}

func (l *plainLines) close() {}

type terminal struct {
	out   io.Writer
	began time.Time
	width int
	shown bool
}

func (t *terminal) line(text string) {
	t.shown = true
	whole := []rune(fmt.Sprintf("%5.1fs  %s", time.Since(t.began).Seconds(), text))
	if t.width > 1 && len(whole) >= t.width {
		whole = append(whole[:t.width-2], '…')
	}
	fmt.Fprintf(t.out, "\r%s\x1b[K", string(whole))
}

func (t *terminal) close() {
	if t.shown {
		fmt.Fprintln(t.out)
	}
}
