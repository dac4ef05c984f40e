package server

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"github.com/septemberai/orch/docs"
)

//go:embed docs.html.tmpl
var docsTemplate string

// openAPI serves the OpenAPI document.
func (s *Server) openAPI(w http.ResponseWriter, _ *http.Request, _ string) error {
	if s.noDocs {
		return errNoEndpoint
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(docs.OpenAPI)
	return nil
}

// docsPage serves the OpenAPI document as an HTML page that loads nothing from other hosts.
func (s *Server) docsPage(w http.ResponseWriter, _ *http.Request, _ string) error {
	if s.noDocs {
		return errNoEndpoint
	}
	page, err := renderedDocs()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	_, _ = w.Write(page)
	return nil
}

// apiDoc contains the parts of the OpenAPI document that the page shows. Mappings whose
// order matters are of type ordered.
type apiDoc struct {
	Info struct{ Title, Summary, Description string }
	Tags []struct {
		Name, Description string
	}
	Paths      ordered[ordered[apiOperation]]
	Components struct {
		Parameters map[string]apiParameter
		Schemas    map[string]apiSchema
	}
}

type apiOperation struct {
	OperationID          string `yaml:"operationId"`
	Summary, Description string
	Tags                 []string
	Parameters           []apiParameter
	RequestBody          *apiBody `yaml:"requestBody"`
	Responses            ordered[apiAnswer]
	Security             []map[string]any

	Method, Path, Curl string `yaml:"-"`
}

type apiParameter struct {
	Ref         string `yaml:"$ref"`
	Name, In    string
	Description string
	Required    bool
	Schema      apiSchema
	Example     any
}

type apiBody struct {
	Required bool
	Content  map[string]struct{ Schema apiSchema }
}

type apiAnswer struct {
	Description string
	Content     map[string]struct{ Schema apiSchema }
}

type apiSchema struct {
	Ref         string `yaml:"$ref"`
	Type        any
	Enum        []any
	Const       any
	Description string
	Required    []string
	Properties  ordered[apiSchema]
	Items       *apiSchema
	OneOf       []apiSchema `yaml:"oneOf"`
	Default     any
	Minimum     any
	Maximum     any
	Example     any
}

// ordered is a YAML mapping that keeps the order of the document.
type ordered[T any] []pair[T]

type pair[T any] struct {
	Name  string
	Value T
}

func (o *ordered[T]) UnmarshalYAML(n *yaml.Node) error {
	for i := 0; i+1 < len(n.Content); i += 2 {
		p := pair[T]{Name: n.Content[i].Value}
		if err := n.Content[i+1].Decode(&p.Value); err != nil {
			return err
		}
		*o = append(*o, p)
	}
	return nil
}

// renderedDocs returns the HTML page. It is rendered once, for the first who asks for it,
// because that takes a sixteenth of the CPU time of a start.
var renderedDocs = sync.OnceValues(renderDocs)

func renderDocs() ([]byte, error) {
	var doc apiDoc
	if err := yaml.Unmarshal(docs.OpenAPI, &doc); err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	groups := map[string][]apiOperation{}
	for _, path := range doc.Paths {
		for _, method := range path.Value {
			op := method.Value
			op.Method, op.Path = strings.ToUpper(method.Name), path.Name
			for i, p := range op.Parameters {
				if p.Ref != "" {
					op.Parameters[i] = doc.Components.Parameters[lastSegment(p.Ref)]
				}
			}
			op.Curl = doc.curl(op)
			groups[op.Tags[0]] = append(groups[op.Tags[0]], op)
		}
	}
	page, err := template.New("docs").Funcs(template.FuncMap{
		"text":   markdown,
		"group":  func(tag string) []apiOperation { return groups[tag] },
		"schema": func(s apiSchema) apiSchema { return doc.resolve(s) },
		"kind":   doc.kind,
		"fields": doc.fields,
		"json":   indented,
		"has":    slices.Contains[[]string],
		"name":   func(s apiSchema) string { return lastSegment(s.Ref) },
		"media":  func(a apiAnswer) apiSchema { return a.Content["application/json"].Schema },
	}).Parse(docsTemplate)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := page.Execute(&b, doc); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func lastSegment(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

func (d *apiDoc) resolve(s apiSchema) apiSchema {
	if s.Ref != "" {
		return d.Components.Schemas[lastSegment(s.Ref)]
	}
	return s
}

// kind describes a schema in a few words.
func (d *apiDoc) kind(s apiSchema) string {
	full := d.resolve(s)
	switch {
	case len(full.Enum) > 0:
		words := make([]string, len(full.Enum))
		for i, w := range full.Enum {
			words[i] = fmt.Sprint(w)
		}
		return strings.Join(words, " | ")
	case full.Const != nil:
		return fmt.Sprint(full.Const)
	case s.Ref != "":
		return lastSegment(s.Ref)
	case full.Items != nil:
		return "list of " + d.kind(*full.Items)
	case len(full.OneOf) > 0:
		var kinds []string
		for _, one := range full.OneOf {
			kinds = append(kinds, d.kind(one))
		}
		return strings.Join(kinds, " or ")
	}
	kind := fmt.Sprint(full.Type)
	if list, ok := full.Type.([]any); ok {
		words := make([]string, len(list))
		for i, w := range list {
			words[i] = fmt.Sprint(w)
		}
		kind = strings.Join(words, " or ")
	}
	if full.Minimum != nil {
		kind += fmt.Sprintf(", from %v", full.Minimum)
	}
	if full.Maximum != nil {
		kind += fmt.Sprintf(", to %v", full.Maximum)
	}
	if full.Default != nil {
		kind += fmt.Sprintf(" = %v", full.Default)
	}
	return kind
}

// fields returns the fields of an object's schema.
func (d *apiDoc) fields(s apiSchema) ordered[apiSchema] { return d.resolve(s).Properties }

// curl returns an example call that can be pasted into a shell after `. .dev/env`.
func (d *apiDoc) curl(op apiOperation) string {
	path := op.Path
	for _, p := range op.Parameters {
		if p.In == "path" {
			path = strings.Replace(path, "{"+p.Name+"}", fmt.Sprint(p.Example), 1)
		}
	}
	call := "curl -s"
	if op.Method != http.MethodGet {
		call += " -X " + op.Method
	}
	call += " $ORCH_URL" + path
	if len(op.Security) > 0 {
		if _, product := op.Security[0]["platformKey"]; product {
			call += ` \
  -H "X-Platform-Key: $ORCH_PLATFORM_KEY"`
		} else {
			call += ` \
  -H "X-Admin-Key: $ORCH_ADMIN_KEY"`
		}
	}
	if op.RequestBody != nil {
		if example := d.resolve(op.RequestBody.Content["application/json"].Schema).Example; example != nil {
			b, _ := json.Marshal(example)
			call += ` \
  -H 'Content-Type: application/json' -d '` + string(b) + "'"
		}
	}
	return call
}

func indented(v any) string {
	b, _ := json.MarshalIndent(v, "", "  ")
	return string(b)
}

// markdown renders the subset of Markdown that the document uses: paragraphs, lists and
// code.
func markdown(s string) template.HTML {
	var b strings.Builder
	for _, block := range strings.Split(strings.TrimSpace(s), "\n\n") {
		lines := strings.Split(block, "\n")
		if strings.HasPrefix(lines[0], "- ") {
			b.WriteString("<ul>")
			for _, l := range lines {
				b.WriteString("<li>" + inline(strings.TrimPrefix(l, "- ")) + "</li>")
			}
			b.WriteString("</ul>")
			continue
		}
		b.WriteString("<p>" + inline(block) + "</p>")
	}
	return template.HTML(b.String()) //nolint:gosec // every text in it is escaped
}

func inline(s string) string {
	parts := strings.Split(template.HTMLEscapeString(s), "`")
	for i := 1; i < len(parts); i += 2 {
		parts[i] = "<code>" + parts[i] + "</code>"
	}
	return strings.Join(parts, "")
}
