package yamlfile

import (
	"encoding"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/medway-lb/medway/pkg/state"
)

// Decode fills a struct, whose fields bear yaml tags, from the document. Fields
// that the document lacks stay as they are. It is strict: fields that the struct
// lacks and values of another type are errors, all of them at once, in the form
// of [Document.Locate].
func (d Document) Decode(into any) error {
	var errs state.Invalid
	decode(d.root, "", reflect.ValueOf(into).Elem(), &errs)
	if errs == nil {
		return nil
	}
	return d.Locate(errs, "")
}

// Load reads the one document of a file into a struct that has its defaults, as
// [Document.Decode] does, and has it checked. All that is wrong is said at once, with
// file, line and column.
func Load(path string, into interface{ Validate() error }) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	documents, err := Parse(path, text)
	switch {
	case err != nil:
		return err
	case len(documents) == 0:
		return fmt.Errorf("%s: empty: %w", path, into.Validate())
	case len(documents) > 1:
		return fmt.Errorf("%s: a second document: expected one", documents[1].Place(""))
	}
	if err := documents[0].Decode(into); err != nil {
		return err
	}
	return documents[0].Locate(into.Validate(), "")
}

var durationType = reflect.TypeFor[time.Duration]()

func decode(n node, path string, into reflect.Value, errs *state.Invalid) {
	wrong := func(expected string) {
		found := string(n.kind)
		if n.kind == word || n.kind == number || n.kind == boolean {
			found = "value " + state.Quote(n.text)
		}
		*errs = append(*errs, state.FieldError{Field: path, Found: found, Expected: expected})
	}
	if unmarshaler, ok := into.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if n.kind != word && n.kind != number || unmarshaler.UnmarshalText([]byte(n.text)) != nil {
			wrong(textForm(into.Type()))
		}
		return
	}
	if into.Type() == durationType {
		duration, err := time.ParseDuration(n.text)
		if n.kind != word && n.text != "0" || err != nil {
			wrong("a duration, such as 10s or 150ms")
		}
		into.SetInt(int64(duration))
		return
	}
	switch into.Kind() {
	case reflect.Pointer:
		fresh := reflect.New(into.Type().Elem())
		decode(n, path, fresh.Elem(), errs)
		into.Set(fresh)
	case reflect.Struct:
		decodeStruct(n, path, into, errs, wrong)
	case reflect.Map:
		if n.kind != mapping {
			wrong("a mapping")
			return
		}
		into.Set(reflect.MakeMap(into.Type()))
		for _, f := range n.fields {
			value := reflect.New(into.Type().Elem()).Elem()
			decode(f.value, join(path, f.name), value, errs)
			into.SetMapIndex(reflect.ValueOf(f.name).Convert(into.Type().Key()), value)
		}
	case reflect.Slice:
		if n.kind != list {
			wrong("a list")
			return
		}
		into.Set(reflect.MakeSlice(into.Type(), len(n.items), len(n.items)))
		for i, item := range n.items {
			decode(item, fmt.Sprintf("%s[%d]", path, i), into.Index(i), errs)
		}
	default:
		decodeScalar(n, into, wrong)
	}
}

func decodeStruct(n node, path string, into reflect.Value, errs *state.Invalid, wrong func(string)) {
	if n.kind != mapping {
		wrong("a mapping")
		return
	}
	byName := map[string]int{}
	var names []string
	for i := range into.NumField() {
		name, _, _ := strings.Cut(into.Type().Field(i).Tag.Get("yaml"), ",")
		if name != "" && name != "-" {
			byName[name] = i
			names = append(names, name)
		}
	}
	for _, f := range n.fields {
		i, ok := byName[f.name]
		if !ok {
			// Without its value, which may be a password.
			*errs = append(*errs, state.FieldError{Field: join(path, f.name), Found: "unknown", Expected: "one of " + strings.Join(names, ", ")})
			continue
		}
		decode(f.value, join(path, f.name), into.Field(i), errs)
	}
}

func decodeScalar(n node, into reflect.Value, wrong func(string)) {
	switch into.Kind() {
	case reflect.String:
		if n.kind != word && n.kind != number && n.kind != boolean {
			wrong("a string")
		}
		into.SetString(n.text)
	case reflect.Bool:
		if n.kind != boolean {
			wrong("true or false")
		}
		into.SetBool(n.text == "true")
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		bits := into.Type().Bits()
		v, err := strconv.ParseUint(n.digits(), 10, bits)
		if n.kind != number || err != nil {
			wrong(fmt.Sprintf("a whole number from 0 to %d", ^uint64(0)>>(64-bits)))
		}
		into.SetUint(v)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		bits := into.Type().Bits()
		v, err := strconv.ParseInt(n.digits(), 10, bits)
		if n.kind != number || err != nil {
			wrong(fmt.Sprintf("a whole number from %d to %d", -1<<(bits-1), 1<<(bits-1)-1))
		}
		into.SetInt(v)
	default:
		wrong("nothing: this field can't be set")
	}
}

func textForm(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[netip.Addr]():
		return "an IPv4 or IPv6 address"
	case reflect.TypeFor[netip.Prefix]():
		return "a prefix, such as 203.0.113.0/24"
	}
	return "a word"
}

func join(path, name string) string {
	name = state.Printable(name)
	if path == "" {
		return name
	}
	return path + "." + name
}
