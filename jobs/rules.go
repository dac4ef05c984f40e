package jobs

import (
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// RulesError lists the rules that a job file breaks.
type RulesError struct{ Problems []string }

func (e *RulesError) Error() string {
	return "the engine's job file cannot be used:\n  - " + strings.Join(e.Problems, "\n  - ")
}

// check returns the rules that the parsed job breaks.
func check(job *api.Job, s Settings) []string {
	var problems []string
	need := func(ok bool, format string, args ...any) bool {
		if !ok {
			problems = append(problems, fmt.Sprintf(format, args...))
		}
		return ok
	}
	need(str(job.Type) == "service" || job.Type == nil, "type must be \"service\"")
	if !need(len(job.TaskGroups) == 1, "there must be exactly one group, found %d", len(job.TaskGroups)) {
		return problems
	}
	group := job.TaskGroups[0]
	checkGroup(group, need)

	if !need(len(group.Tasks) == 1, "the group must have exactly one task, found %d", len(group.Tasks)) {
		return problems
	}
	task := group.Tasks[0]
	need(task.Driver == string(s.Driver), "the task's driver is %q but ORCH_ENGINE_DRIVER is %q", task.Driver, s.Driver)
	if s.Driver == Docker {
		mounted := false
		for _, m := range task.VolumeMounts {
			mounted = mounted || m.Volume != nil && *m.Volume == volumeName && m.Destination != nil && *m.Destination == "/data"
		}
		need(mounted, "the task must mount volume %q at /data", volumeName)
	}
	checkTemplates(task, s, need)
	checkTLS(task, s, need)
	checkServices(append(append([]*api.Service{}, group.Services...), task.Services...), s.PKIPath != "", need)
	return problems
}

type needFunc func(ok bool, format string, args ...any) bool

func checkGroup(group *api.TaskGroup, need needFunc) {
	ports := 0
	for _, n := range group.Networks {
		for _, p := range n.DynamicPorts {
			if p.Label == PortLabel {
				ports++
			}
		}
	}
	need(ports == 1, "the group needs one dynamic port labelled %q", PortLabel)

	if vol := group.Volumes[volumeName]; need(vol != nil, "the group must claim a volume named %q", volumeName) {
		need(vol.Type == "host", "volume %q must be of type \"host\"", volumeName)
		need(vol.AccessMode == "single-node-single-writer", "volume %q must have access_mode \"single-node-single-writer\": any other mode lets two processes share one brain", volumeName)
		need(!vol.ReadOnly, "volume %q must not be read-only", volumeName)
	}
	need(group.Update != nil && group.Update.MaxParallel != nil && *group.Update.MaxParallel == 0, "add update { max_parallel = 0 }")
	r := group.ReschedulePolicy
	need(r != nil && r.Attempts != nil && *r.Attempts == 0 && r.Unlimited != nil && !*r.Unlimited,
		"add reschedule { attempts = 0 unlimited = false }, because a brain cannot move to another node")
	need(group.RestartPolicy != nil && str(group.RestartPolicy.Mode) == "fail", "add restart { mode = \"fail\" }")
	d := group.Disconnect
	need(d != nil && d.LostAfter != nil && *d.LostAfter > 0, "add disconnect { lost_after = ... }")
	need(d != nil && d.Replace != nil && !*d.Replace, "add disconnect { replace = false }")
}

func checkTemplates(task *api.Task, s Settings, need needFunc) {
	keyHash, checksum := false, false
	for _, t := range task.Templates {
		need(t.Once == nil || !*t.Once, "a template has once = true: its variables and those of the other templates replace each other")
		data := str(t.EmbeddedTmpl)
		if strings.Contains(data, "nomadVar") {
			keyHash = keyHash || t.Envvars != nil && *t.Envvars && strings.Contains(data, "ENGINE_KEY_HASH")
			checksum = checksum || t.Envvars != nil && *t.Envvars && strings.Contains(data, keyChecksumVariable)
			need(t.Splay != nil && *t.Splay == 0, "the key hash template needs splay = \"0s\": without it a new key takes seconds to arrive")
			if t.Envvars != nil && *t.Envvars && s.KeyReload == "restart" {
				need(str(t.ChangeMode) == "restart", "the key hash template must have change_mode \"restart\"")
			}
		}
		if strings.Contains(data, "with secret") {
			need(str(t.ChangeMode) == "noop", "the provider key template needs change_mode = \"noop\": otherwise all engines restart together when a key changes")
			need(t.Envvars == nil || !*t.Envvars || strings.Contains(data, "toJSON"), "the provider key template must quote values by toJSON: Nomad kills every engine whose env file it cannot read")
		}
	}
	need(checksum || !s.NeedsChecksum || s.Driver == Mock, "the template with ENGINE_KEY_HASH must also give %s, as the built-in job file does: with ORCH_BOOT_DETECTION=consul nothing else shows which key a process was started with", keyChecksumVariable)
	need(keyHash || s.Driver == Mock, "a template with env = true must give ENGINE_KEY_HASH from the job's Nomad variable")
	if s.ProviderKeysPath != "" {
		need(vaultIsQuiet(task), "add vault { change_mode = \"noop\" }, because the default restarts the engine when it gets a new token")
	}
}

func checkServices(services []*api.Service, tls bool, need needFunc) {
	if !need(len(services) == 1, "there must be exactly one service, found %d", len(services)) {
		return
	}
	svc := services[0]
	need(svc.Provider == "" || svc.Provider == "consul", "the service's provider must be \"consul\"")
	need(svc.PortLabel == PortLabel, "the service's port must be %q", PortLabel)
	for _, c := range svc.Checks {
		if c.Type == "http" && c.Path == "/health" {
			need((c.Protocol == "https") == tls, "the check of /health must have protocol \"https\" with ORCH_ENGINE_TLS=pki, and only then")
			return
		}
	}
	need(false, "the service needs an http check of /health")
}

func str(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
