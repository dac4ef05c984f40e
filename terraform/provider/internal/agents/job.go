package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/terraform-plugin-framework/resource"
	"github.com/hashicorp/terraform-plugin-framework/resource/schema"
	"github.com/hashicorp/terraform-plugin-framework/tfsdk"
	"github.com/hashicorp/terraform-plugin-framework/types"
	"github.com/hashicorp/terraform-plugin-go/tftypes"
)

// job is the resource nomad_job.
type job struct{ configured }

func (j *job) Metadata(_ context.Context, _ resource.MetadataRequest, resp *resource.MetadataResponse) {
	resp.TypeName = "nomad_job"
}

func (j *job) Schema(_ context.Context, _ resource.SchemaRequest, resp *resource.SchemaResponse) {
	resp.Schema = schema.Schema{
		Attributes: map[string]schema.Attribute{
			"id": idAttribute, "namespace": idAttribute,
			"jobspec":          schema.StringAttribute{Required: true},
			"purge_on_destroy": schema.BoolAttribute{Optional: true},
			"detach":           schema.BoolAttribute{Optional: true},
		},
		Blocks: map[string]schema.Block{
			"hcl2": schema.SingleNestedBlock{Attributes: map[string]schema.Attribute{
				"vars": schema.MapAttribute{Optional: true, ElementType: types.StringType},
			}},
			"timeouts": schema.SingleNestedBlock{Attributes: map[string]schema.Attribute{
				"create": schema.StringAttribute{Optional: true}, "update": schema.StringAttribute{Optional: true},
			}},
		},
	}
}

// variables returns the job's variables as a file of `nomad job run -var-file`. On the command
// line, and in Terraform, the value of a string has no quotes.
func variables(spec string, vars map[string]any) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		value, _ := vars[name].(string)
		if regexp.MustCompile(`variable "` + regexp.QuoteMeta(name) + `" \{\s*type\s*=\s*string\s`).MatchString(spec) {
			value = strconv.Quote(value)
		}
		fmt.Fprintf(&b, "%s = %s\n", name, value)
	}
	return b.String()
}

func (j *job) path(values map[string]any, below string, query ...string) string {
	q := url.Values{"namespace": {fmt.Sprint(values["namespace"])}}
	for _, pair := range query {
		name, value, _ := strings.Cut(pair, "=")
		q.Set(name, value)
	}
	return fill("/v1/job/{id}", values) + below + "?" + q.Encode()
}

// run registers the job, and waits for the end of its deployment.
func (j *job) run(ctx context.Context, plan tfsdk.Plan, state *tfsdk.State, operation string) error {
	values := decode(plan.Raw).(map[string]any)
	timeouts, _ := values["timeouts"].(map[string]any)
	patience, err := time.ParseDuration(fmt.Sprint(timeouts[operation]))
	if err != nil {
		patience = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	hcl2, _ := values["hcl2"].(map[string]any)
	vars, _ := hcl2["vars"].(map[string]any)
	spec := values["jobspec"].(string)
	var parsed map[string]any
	if err := j.api.call(ctx, http.MethodPost, "/v1/jobs/parse", map[string]any{"JobHCL": spec, "Variables": variables(spec, vars), "Canonicalize": true}, &parsed); err != nil {
		return err
	}
	values["id"], values["namespace"] = parsed["ID"], parsed["Namespace"]
	submission := map[string]any{"Source": spec, "Format": "hcl2", "VariableFlags": vars}
	if err := j.api.call(ctx, http.MethodPost, "/v1/jobs?namespace="+url.QueryEscape(fmt.Sprint(parsed["Namespace"])), map[string]any{"Job": parsed, "Submission": submission}, nil); err != nil {
		return err
	}
	keep(ctx, state, values)
	if detach, set := values["detach"].(bool); detach || !set {
		return nil
	}
	var registered struct{ Version uint64 }
	if err := j.api.call(ctx, http.MethodGet, j.path(values, ""), nil, &registered); err != nil {
		return err
	}
	for {
		var d struct {
			JobVersion                uint64
			Status, StatusDescription string
		}
		if err := j.api.call(ctx, http.MethodGet, j.path(values, "/deployment"), nil, &d); err != nil {
			return err
		}
		if d.JobVersion >= registered.Version {
			switch d.Status {
			case "successful":
				return nil
			case "failed", "cancelled":
				return fmt.Errorf("the deployment has %s: %s", d.Status, d.StatusDescription)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the deployment is %s: %s: %w", d.Status, d.StatusDescription, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

func (j *job) Create(ctx context.Context, req resource.CreateRequest, resp *resource.CreateResponse) {
	if err := j.run(ctx, req.Plan, &resp.State, "create"); err != nil {
		resp.Diagnostics.AddError("nomad_job", err.Error())
	}
}

func (j *job) Update(ctx context.Context, req resource.UpdateRequest, resp *resource.UpdateResponse) {
	if err := j.run(ctx, req.Plan, &resp.State, "update"); err != nil {
		resp.Diagnostics.AddError("nomad_job", err.Error())
	}
}

// Read compares what was submitted last with the configuration.
func (j *job) Read(ctx context.Context, req resource.ReadRequest, resp *resource.ReadResponse) {
	values := decode(req.State.Raw).(map[string]any)
	var found struct {
		Version uint64
		Stop    bool
	}
	err := j.api.call(ctx, http.MethodGet, j.path(values, ""), nil, &found)
	if errors.Is(err, errAbsent) || err == nil && found.Stop {
		resp.State.Raw = tftypes.NewValue(req.State.Raw.Type(), nil)
		return
	}
	var submitted struct {
		Source        string
		VariableFlags map[string]any
	}
	if err == nil {
		err = j.api.call(ctx, http.MethodGet, j.path(values, "/submission", fmt.Sprintf("version=%d", found.Version)), nil, &submitted)
	}
	switch {
	case errors.Is(err, errAbsent): // by somebody without a source
		submitted.Source = ""
	case err != nil:
		resp.Diagnostics.AddError("nomad_job", err.Error())
		return
	}
	values["jobspec"] = submitted.Source
	if len(submitted.VariableFlags) > 0 {
		values["hcl2"] = map[string]any{"vars": submitted.VariableFlags}
	}
	keep(ctx, &resp.State, values)
}

func (j *job) Delete(ctx context.Context, req resource.DeleteRequest, resp *resource.DeleteResponse) {
	values := decode(req.State.Raw).(map[string]any)
	purge, _ := values["purge_on_destroy"].(bool)
	err := j.api.call(ctx, http.MethodDelete, j.path(values, "", "purge="+strconv.FormatBool(purge)), nil, nil)
	if err != nil && !errors.Is(err, errAbsent) {
		resp.Diagnostics.AddError("nomad_job", err.Error())
	}
}
