package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/medway-lb/medway/pkg/state"
)

// keyDocument is a key in `show -o json`.
type keyDocument struct {
	Key      string `json:"key"` // below /medway/v1/
	Revision int64  `json:"revision"`
	// Value is JSON, or a word.
	Value any `json:"value"`
}

// shownKinds are what show shows when nothing is named: what people write.
var shownKinds = []state.Kind{state.KindSettings, state.KindLadder, state.KindVIP, state.KindPool, state.KindBackend, state.KindTarget}

func show(t *tool) *cobra.Command {
	var output form
	cmd := &cobra.Command{
		Use:   "show [KEY...]",
		Short: "Show VIPs, pools, backends, settings and targets as they are stored",
		Long: `Show keys below /medway/v1/ with their values, and the revision at which each was
written last, which medwayctl apply --revision takes. A KEY is a whole key, such as
vips/sip-1, or the beginning of some, such as pools/ or claims/dc1-lvs-a/; without one,
all that people write is shown.

Exit status: 0; 1 if nothing could be read, or a KEY is that of nothing.`,
		Example: `  medwayctl show vips/sip-1 -o yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(); err != nil {
				return err
			}
			have, err := t.look(cmd.Context())
			if err != nil {
				return err
			}
			list, err := keysShown(have, args)
			if err != nil {
				return err
			}
			return output.write(cmd.OutOrStdout(), list, func() error { return writeKeys(cmd.OutOrStdout(), list) })
		},
	}
	output.flag(cmd)
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

func keysShown(p *picture, wanted []string) ([]keyDocument, error) {
	list := []keyDocument{}
	found := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(p.Entries)) {
		name, ours := strings.CutPrefix(key, state.Prefix)
		if !ours {
			continue
		}
		shown := len(wanted) == 0 && slices.ContainsFunc(shownKinds, func(kind state.Kind) bool {
			k, err := state.ParseKey(key)
			return err == nil && k.Kind == kind
		})
		for _, w := range wanted {
			of := strings.TrimPrefix(w, state.Prefix)
			if name == of || strings.HasSuffix(of, "/") && strings.HasPrefix(name, of) {
				shown, found[w] = true, true
			}
		}
		if !shown {
			continue
		}
		d := keyDocument{Key: name, Revision: p.Entries[key].ModRevision, Value: string(p.Entries[key].Value)}
		if text := p.Entries[key].Value; json.Valid(text) {
			d.Value = json.RawMessage(text)
		}
		list = append(list, d)
	}
	for _, w := range wanted {
		if !found[w] {
			return nil, fmt.Errorf("key %s does not exist, and is not the beginning of one that does (which ends with a slash)", state.Quote(w))
		}
	}
	return list, nil
}

func writeKeys(out io.Writer, list []keyDocument) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tREVISION\tVALUE")
	for _, d := range list {
		value := fmt.Sprint(d.Value)
		if text, ok := d.Value.(json.RawMessage); ok {
			value = string(text)
		}
		fmt.Fprintf(w, "%s\t%d\t%s\n", state.Printable(d.Key), d.Revision, state.Line(value))
	}
	return w.Flush()
}
