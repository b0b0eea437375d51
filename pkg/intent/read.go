package intent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/medway-lb/medway/pkg/state"
	"github.com/medway-lb/medway/pkg/yamlfile"
)

// Object is an object with the place that it comes from.
type Object struct {
	state.Object
	document yamlfile.Document
}

// JSON is the object as it was written, a YAML document on one line.
func (o Object) JSON() []byte { return o.document.JSON() }

// Read reads and checks all objects of files and directories, or with "-" of
// standard input; it says all that is wrong at once.
func Read(paths []string, stdin io.Reader) ([]Object, error) {
	var objects []Object
	var errs []error
	for _, path := range paths {
		found, err := readPath(path, stdin)
		if len(found) == 0 && err == nil {
			err = fmt.Errorf("%s: expected at least one object", path)
		}
		objects, errs = append(objects, found...), append(errs, err)
	}
	return objects, errors.Join(append(errs, twice(objects)...)...)
}

// Parse is [Read] of one text; name is what places in errors begin with.
func Parse(name string, text []byte) ([]Object, error) {
	objects, err := parseObjects(name, text)
	if len(objects) == 0 && err == nil {
		err = fmt.Errorf("%s: expected at least one object", name)
	}
	return objects, errors.Join(append([]error{err}, twice(objects)...)...)
}

// twice says which objects are there more than once.
func twice(objects []Object) (errs []error) {
	first := map[state.Key]Object{}
	for _, o := range objects {
		if other, twice := first[o.Key]; twice {
			errs = append(errs, fmt.Errorf("%s: %s is in %s already", o.document.Place(""), o, other.document.Place("")))
			continue
		}
		first[o.Key] = o
	}
	return errs
}

func readPath(path string, stdin io.Reader) ([]Object, error) {
	if path == "-" {
		text, err := io.ReadAll(stdin)
		if err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
		return parseObjects("stdin", text)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = yamlFiles(path); err != nil {
			return nil, err
		}
	}
	var objects []Object
	var errs []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found, err := parseObjects(file, text)
		objects, errs = append(objects, found...), append(errs, err)
	}
	return objects, errors.Join(errs...)
}

func parseObjects(file string, text []byte) ([]Object, error) {
	documents, err := yamlfile.Parse(file, text)
	errs := []error{err}
	var objects []Object
	for _, d := range documents {
		o, err := state.ParseObject(d.JSON())
		if err != nil {
			label := ""
			if o.Key.Kind != "" {
				label = state.Printable(o.String())
			}
			errs = append(errs, d.Locate(err, label))
			continue
		}
		objects = append(objects, Object{o, d})
	}
	return objects, errors.Join(errs...)
}

func yamlFiles(dir string) ([]string, error) {
	var files []string
	// With a slash, or a symbolic link to a directory would not be followed.
	err := filepath.WalkDir(strings.TrimSuffix(dir, "/")+"/", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(path)) {
			files = append(files, path)
		}
		return err
	})
	return files, err
}
