package jobs

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"text/template"

	"github.com/hashicorp/go-envparse"
)

// The template in the default job file passes provider keys to engines unchanged.
// secrets.CheckEnv renders them in the same way.
func TestProviderKeysTemplate(t *testing.T) {
	s := settings(RawExec)
	job := parsed(t, s).job
	var text string
	var parsedJob struct {
		TaskGroups []struct {
			Tasks []struct {
				Templates []struct{ EmbeddedTmpl string }
			}
		}
	}
	if err := json.Unmarshal(job, &parsedJob); err != nil {
		t.Fatal(err)
	}
	for _, tmpl := range parsedJob.TaskGroups[0].Tasks[0].Templates {
		if strings.Contains(tmpl.EmbeddedTmpl, "with secret") {
			text = tmpl.EmbeddedTmpl
		}
	}
	env := map[string]string{
		"A": "", "B": " a # b ", "C": "line\nbreak \"quotes\" 'and' \\", "D": "$HOME ${PATH} {{ x }} <&>", "E": "\u2028\U0001F600\x7f\t", "LLM_API_KEY": "sk-1",
	}
	type data struct{ Data map[string]any }
	tmpl, err := template.New("").Funcs(template.FuncMap{
		"secret": func(string) data { return data{map[string]any{"data": env}} },
		"toJSON": func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err }, // as in consul-template
	}).Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var file, want bytes.Buffer
	if err := tmpl.Execute(&file, nil); err != nil {
		t.Fatal(err)
	}
	got, err := envparse.Parse(bytes.NewReader(file.Bytes()))
	if err != nil || !maps.Equal(got, env) {
		t.Errorf("Nomad would read %q, %v, of\n%s", got, err, file.String())
	}
	for _, name := range []string{"A", "B", "C", "D", "E", "LLM_API_KEY"} {
		quoted, _ := json.Marshal(env[name])
		want.WriteString(name + "=" + string(quoted) + "\n")
	}
	if file.String() != want.String() {
		t.Errorf("it is rendered as\n%s\nwant\n%s", file.String(), want.String())
	}
}
