package commands

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"reflect"
	"strconv"
	"strings"

	"github.com/posener/complete"

	"github.com/septemberai/orch/client"
	"github.com/septemberai/orch/internal/cmdline"
)

// policyFields are the names of a policy's fields, in order.
var policyFields = func() (names []string) {
	for f := range reflect.TypeFor[client.Policy]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}()

// policyFlags are the flags that change a policy.
type policyFlags struct {
	file string
	sets []string
}

func (p *policyFlags) register(f *flag.FlagSet) {
	f.StringVar(&p.file, "policy", "", "a `file` with the complete policy as JSON; - reads stdin")
	f.Func("set", "set one `field=value`; an empty value removes it; may be repeated", func(s string) error {
		p.sets = append(p.sets, s)
		return nil
	})
}

// policyPredictors complete the values of the policy flags.
var policyPredictors = map[string]complete.Predictor{"policy": complete.PredictFiles("*.json"), "set": predictPolicyFields}

var predictPolicyFields = func() complete.Predictor {
	names := make([]string, len(policyFields))
	for i, name := range policyFields {
		names[i] = name + "="
	}
	return complete.PredictSet(names...)
}()

// given reports whether the flags change anything.
func (p *policyFlags) given() bool { return p.file != "" || len(p.sets) > 0 }

// change parses the flags, and returns a function that changes a policy accordingly.
func (p *policyFlags) change(env *cmdline.Env) (func(client.Policy) client.Policy, error) {
	var whole *client.Policy
	if p.file != "" {
		b, err := readFile(env, p.file)
		if err != nil {
			return nil, cmdline.Wrong("-policy: %v", err)
		}
		whole = new(client.Policy)
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		if err := dec.Decode(whole); err != nil {
			return nil, cmdline.Wrong("-policy %s: %v", p.file, err)
		}
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return nil, cmdline.Wrong("-policy %s: unexpected data after the policy", p.file)
		}
	}
	for _, s := range p.sets {
		if err := assign(new(client.Policy), s); err != nil {
			return nil, err
		}
	}
	return func(policy client.Policy) client.Policy {
		if whole != nil {
			policy = *whole
		}
		for _, s := range p.sets {
			_ = assign(&policy, s) // it succeeded above
		}
		return policy
	}, nil
}

// maxPolicy limits the size of a policy in bytes; the service accepts no more.
const maxPolicy = 64 << 10

func readFile(env *cmdline.Env, name string) ([]byte, error) {
	in := env.In
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, maxPolicy))
}

// assign sets one field of a policy to a number, a word, or words separated by commas.
func assign(p *client.Policy, assignment string) error {
	name, value, ok := strings.Cut(assignment, "=")
	if !ok {
		return cmdline.Wrong("-set must be field=value")
	}
	for i, known := range policyFields {
		if known != name {
			continue
		}
		field := reflect.ValueOf(p).Elem().Field(i)
		if value == "" {
			field.SetZero()
			return nil
		}
		switch field.Interface().(type) {
		case *int:
			n, err := strconv.Atoi(value)
			if err != nil {
				return cmdline.Wrong("-set %s: %q is not a whole number", name, value)
			}
			field.Set(reflect.ValueOf(&n))
		case []string:
			field.Set(reflect.ValueOf(strings.Split(value, ",")))
		default:
			field.SetString(value)
		}
		return nil
	}
	return cmdline.Wrong("-set: unknown field %q; the fields are %s", name, strings.Join(policyFields, ", "))
}

// describePolicy shows a policy as a table.
func describePolicy(p client.Policy) *cmdline.Table {
	t := &cmdline.Table{}
	v := reflect.ValueOf(p)
	for i, name := range policyFields {
		if f := v.Field(i); !f.IsZero() {
			value := f.Interface()
			if list, ok := value.([]string); ok {
				value = strings.Join(list, ",")
			}
			t.Row(name, value)
		}
	}
	if t.Len() == 0 {
		t.Row("Policy", "no limits")
	}
	return t
}

// oneOf returns an error unless a flag's value is empty or one of the given words.
func oneOf(name, value string, words []string) error {
	if value == "" {
		return nil
	}
	for _, w := range words {
		if w == value {
			return nil
		}
	}
	return cmdline.Wrong("%s must be one of %s", name, strings.Join(words, ", "))
}
