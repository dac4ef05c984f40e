package engine

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestDecodeExecute(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ body, want, err string }{
		"OK":            {body: `{"input":"hello"}`, want: "hello"},
		"OKSpaces":      {body: " {\n\"input\" : \"a\\u0062\" } \n", want: "ab"},
		"ErrEmpty":      {body: ``, err: "not a JSON object"},
		"ErrList":       {body: `["input"]`, err: "not a JSON object"},
		"ErrMissing":    {body: `{}`, err: "is missing"},
		"ErrEmptyInput": {body: `{"input":""}`, err: "is empty"},
		"ErrNull":       {body: `{"input":null}`, err: "must be a string"},
		"ErrNumber":     {body: `{"input":1}`, err: "must be a string"},
		"ErrNested":     {body: `{"input":{"a":1}}`, err: "must not be"},
		"ErrCase":       {body: `{"Input":"x"}`, err: "unknown field"},
		"ErrUnknown":    {body: `{"input":"x","more":1}`, err: "unknown field"},
		"ErrTwice":      {body: `{"input":"x","input":"y"}`, err: "twice"},
		"ErrTrailing":   {body: `{"input":"x"} {}`, err: "after the JSON"},
		"ErrCut":        {body: `{"input":"x"`, err: "not a JSON object"},
		"ErrUTF8":       {body: "{\"input\":\"\xff\"}", err: "UTF-8"},
		"ErrTooLong":    {body: `{"input":"` + strings.Repeat("x", maxInput+1) + `"}`, err: "more than"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := decodeExecute([]byte(tt.body))
			if tt.err == "" && (err != nil || got != tt.want) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
			if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("got %q, %v, want error %q", got, err, tt.err)
			}
		})
	}
}

func TestDecodeWork(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]int64{
		`{"seconds":0}`: 0, `{"seconds":3600}`: 3600,
		`{"seconds":3601}`: -1, `{"seconds":-1}`: -1, `{"seconds":1.5}`: -1, `{"seconds":"1"}`: -1, `{}`: -1,
	} {
		got, err := decodeWork([]byte(body))
		if (err != nil) != (want < 0) || (err == nil && got != want) {
			t.Errorf("%s: got %d, %v, want %d", body, got, err, want)
		}
	}
}

// FuzzDecodeExecute: encoding/json also accepts what the strict decoder accepts, with the
// same meaning, and it can be stored.
func FuzzDecodeExecute(f *testing.F) {
	for _, s := range []string{`{"input":"x"}`, `{"input":"\ud83d\ude00"}`, `{"input":"x","input":"y"}`, `{"input":null}`, "{", `{"input":"a"}]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decodeExecute(body)
		if err != nil {
			return
		}
		var v struct{ Input string }
		if err := json.Unmarshal(body, &v); err != nil || v.Input != got {
			t.Errorf("%q: got %q, encoding/json returns %q, %v", body, got, v.Input, err)
		}
		if got == "" || len(got) > maxInput || !utf8.ValidString(got) {
			t.Errorf("%q: took the unfit input %q", body, got)
		}
		again, _ := json.Marshal(map[string]string{"input": got})
		if back, err := decodeExecute(again); err != nil || back != got {
			t.Errorf("%q does not survive: %q, %v", got, back, err)
		}
	})
}
