package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/store"
)

func apply(c *connection) *cobra.Command {
	var path string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "apply -f DIR",
		Short: "Load VIPs, pools, backends and settings from YAML files",
		Long: `Load objects from a YAML file, or from all *.yaml files of a directory, after
checking every one of them, by itself and beside what is stored: if one is wrong,
nothing is written. An object is replaced as a whole. What is in etcd and not in
the files stays; delete it with etcdctl del.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := readObjects(path)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout)
			defer cancel()
			return applyObjects(ctx, c, objects, dryRun, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&path, "filename", "f", "", "`file` or directory to load")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show the difference and write nothing")
	_ = cmd.MarkFlagRequired("filename")
	return cmd
}

// applyObjects writes what differs, in one transaction that fails if someone
// else has changed one of the objects in between.
func applyObjects(ctx context.Context, c *connection, objects []state.Object, dryRun bool, out io.Writer) error {
	client, err := c.open()
	if err != nil {
		return err
	}
	defer client.Close()
	if err := checkTogether(ctx, client, objects); err != nil {
		return err
	}
	var guards []store.Guard
	var puts []store.Put
	for _, o := range objects {
		key := o.Key.String()
		have, found, err := client.Get(ctx, key)
		if err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		switch {
		case found && bytes.Equal(have.Value, o.Value):
			fmt.Fprintf(out, "  %s\n", key)
			continue
		case found:
			fmt.Fprintf(out, "~ %s\n    - %s\n    + %s\n", key, have.Value, o.Value)
		default:
			fmt.Fprintf(out, "+ %s\n    + %s\n", key, o.Value)
		}
		guards = append(guards, store.Guard{Key: key, ModRevision: have.ModRevision})
		puts = append(puts, store.Put{Key: key, Value: o.Value})
	}
	if dryRun || len(puts) == 0 {
		fmt.Fprintf(out, "%d of %d objects differ\n", len(puts), len(objects))
		return nil
	}
	committed, revision, err := client.Commit(ctx, guards, puts, nil)
	switch {
	case err != nil:
		return fmt.Errorf("write: %w", err)
	case !committed:
		return errors.New("nothing was written: someone else changed an object at the same time; look again with --dry-run")
	}
	fmt.Fprintf(out, "%d of %d objects written at revision %d\n", len(puts), len(objects), revision)
	return nil
}

// checkTogether refuses objects that would be wrong beside what is stored: a VIP
// that names a pool that is nowhere, or another VIP's address.
func checkTogether(ctx context.Context, client *store.Client, objects []state.Object) error {
	entries, revision, err := client.List(ctx, state.Prefix)
	if err != nil {
		return fmt.Errorf("read %s: %w", state.Prefix, err)
	}
	cache := state.NewCache()
	for _, e := range entries {
		cache.Put(e.Key, e.Value, e.ModRevision, e.Lease)
	}
	before := map[state.Fault]bool{}
	for _, f := range cache.Snapshot().Faults {
		before[f] = true
	}
	for _, o := range objects {
		cache.Put(o.Key.String(), o.Value, revision+1, 0)
	}
	var errs []error
	for _, f := range cache.Snapshot().Faults {
		if !before[f] {
			errs = append(errs, fmt.Errorf("%s: %s", f.Key, f.Reason))
		}
	}
	return errors.Join(errs...)
}

// readObjects reads and checks all objects of a file or directory; it says all
// that is wrong at once.
func readObjects(path string) ([]state.Object, error) {
	files := []string{path}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.IsDir() {
		if files, err = yamlFiles(path); err != nil {
			return nil, err
		}
	}
	var objects []state.Object
	var errs []error
	from := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, d := range documents(text) {
			place := fmt.Sprintf("%s:%d", file, d.line)
			json, err := yaml.YAMLToJSON(d.text)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", place, err))
				continue
			}
			o, err := state.ParseObject(json)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", place, err))
				continue
			}
			key := o.Key.String()
			if first, twice := from[key]; twice {
				errs = append(errs, fmt.Errorf("%s: %s is in %s already", place, key, first))
			}
			from[key] = place
			objects = append(objects, o)
		}
	}
	if len(objects) == 0 && len(errs) == 0 {
		return nil, fmt.Errorf("%s: expected at least one object", path)
	}
	return objects, errors.Join(errs...)
}

func yamlFiles(dir string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(path)) {
			files = append(files, path)
		}
		return err
	})
	return files, err
}

type document struct {
	line int
	text []byte
}

// documents splits a YAML stream, so that errors can name the line on which an
// object begins.
func documents(text []byte) []document {
	var out []document
	current := document{line: 1}
	flush := func(next int) {
		if len(bytes.TrimSpace(stripComments(current.text))) > 0 {
			out = append(out, current)
		}
		current = document{line: next}
	}
	for i, line := range strings.SplitAfter(string(text), "\n") {
		if rest, ok := marker(line); ok {
			flush(i + 2)
			if rest != "" && rest[0] != '#' {
				current = document{line: i + 1, text: []byte(rest + "\n")}
			}
			continue
		}
		current.text = append(current.text, line...)
	}
	flush(0)
	return out
}

// marker says whether a line begins or ends a document (YAML 1.2, 9.1.2), and
// returns what follows the marker on it.
func marker(line string) (rest string, ok bool) {
	for _, m := range []string{"---", "..."} {
		rest, ok := strings.CutPrefix(line, m)
		if ok && (rest == "" || strings.ContainsRune(" \t\r\n", rune(rest[0]))) {
			return strings.TrimSpace(rest), true
		}
	}
	return "", false
}

func stripComments(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			out = append(out, line...)
		}
	}
	return out
}
