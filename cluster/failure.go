package cluster

import (
	"net/netip"
	"regexp"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// Cause is the kind of failure that Nomad reports of a process.
type Cause string

// The causes of a failed process. Empty: the process itself, or Nomad gives no cause.
const (
	CauseImage  Cause = "image"         // it cannot be pulled, or contains nothing that can be run
	CauseDriver Cause = "driver"        // the task driver could not start the process: its daemon, a mount or a port
	CauseMemory Cause = "out_of_memory" // the kernel killed the process at its memory limit
	// CauseTemplate: the node could not write a file of secrets, such as the hash of the
	// key, and ended the process for that reason.
	CauseTemplate Cause = "template"
)

// failure returns why a task event means that the process could not start or has ended, and
// the cause. Stopping on request is no failure.
func failure(e *api.TaskEvent) (reason string, cause Cause) {
	switch e.Type {
	case api.TaskDriverFailure:
		cause = CauseDriver
		if !driverAway(e.DisplayMessage) && containsAny(e.DisplayMessage, imageWords) {
			cause = CauseImage
		}
		return cleanReason(e.DisplayMessage), cause
	case api.TaskSetupFailure, api.TaskFailedValidation, api.TaskArtifactDownloadFailed:
		if driverAway(e.DisplayMessage) {
			cause = CauseDriver
		}
		return cleanReason(e.DisplayMessage), cause
	case api.TaskKilling:
		// In Nomad's template.go, vault_hook.go and other hooks of tasks; all other reasons
		// for which it ends a process are requests.
		switch {
		case e.Details["fails_task"] != "true" || e.DisplayMessage == "":
		case strings.HasPrefix(e.DisplayMessage, "Template"):
			return cleanReason(e.DisplayMessage), CauseTemplate
		default:
			return cleanReason(e.DisplayMessage), ""
		}
	case api.TaskTerminated:
		if outOfMemory(e) {
			return cleanReason("the process was killed at its memory limit: " + e.DisplayMessage), CauseMemory
		}
		return cleanReason("the process exited: " + e.DisplayMessage), ""
	}
	return "", ""
}

// taskHookFailed is the event of a hook that failed, such as a login at Consul or Vault
// (TaskHookFailed in Nomad's structs). Nomad may try again, so it is no failure by itself.
const taskHookFailed = "Task hook failed"

// lastWords returns what Nomad reports of a failed allocation none of whose events is a
// failure: the last event that fails its task or says why Nomad does not start it again, or
// Nomad's description.
func lastWords(a *api.AllocationListStub) string {
	var last *api.TaskEvent
	for _, state := range a.TaskStates {
		for _, e := range state.Events {
			tells := e.Type == taskHookFailed || e.Type == api.TaskNotRestarting || e.Details["fails_task"] == "true"
			if tells && e.DisplayMessage != "" && (last == nil || e.Time > last.Time) {
				last = e
			}
		}
	}
	if last == nil {
		return a.ClientDescription
	}
	return last.DisplayMessage
}

// outOfMemory reports whether the kernel ended a process at its memory limit (SetOOMKilled
// in Nomad's structs). The docker driver also reports it in its message.
func outOfMemory(e *api.TaskEvent) bool {
	return e.Details["oom_killed"] == "true" || strings.Contains(e.DisplayMessage, "OOM Killed")
}

// pulling returns the docker driver's last message about an image pull in progress
// (pullImage and handleSlowPullProgressReport in its source). The end of a pull has no
// message, but other events follow it.
func pulling(events []*api.TaskEvent) string {
	for len(events) > 0 && events[len(events)-1].Type == api.TaskKilling { // the end of the task waits for the pull
		events = events[:len(events)-1]
	}
	if len(events) == 0 {
		return ""
	}
	last := events[len(events)-1]
	if last.Type != api.TaskDriverMessage || !containsAny(last.DisplayMessage, []string{"Downloading image", "image pull progress"}) {
		return ""
	}
	return cleanReason(last.DisplayMessage)
}

// templateEvent is the type of the events of a task's templates (consulTemplateSourceName in
// Nomad's template.go), and missingPrefix begins the message about what they wait for.
const templateEvent, missingPrefix = "Template", "Missing: "

// missing returns what a task's templates wait for before its process can start, such as a
// certificate that Vault does not issue; empty: nothing. Nomad retries it. The names contain
// no address and no secret (String of the dependencies in consul-template).
func missing(events []*api.TaskEvent) string {
	if len(events) == 0 {
		return ""
	}
	last := events[len(events)-1]
	what, found := strings.CutPrefix(last.DisplayMessage, missingPrefix)
	if last.Type != templateEvent || !found {
		return ""
	}
	return what
}

var (
	// imageWords are in the messages of the docker driver about pulls (coordinator.go), and
	// of Docker, runc and the kernel about an executable that is missing or cannot be run
	// (errno ENOENT, EACCES, ENOEXEC).
	imageWords = []string{
		"pull", "docker auth", "find image", "No such image", "manifest", "executable file not found", "no such file or directory",
		"not found under path", "permission denied", "exec format error", "no command specified",
	}
	// awayWords are in the messages of Nomad and of Docker's client about a daemon or
	// driver that does not run.
	awayWords = []string{
		"Cannot connect to the Docker daemon", "Failed to connect to docker daemon", "error during connect", "docker.sock",
		"failed to fetch docker daemon info", "driver exited unexpectedly", "failed to create driver", "missing driver",
	}
)

func driverAway(message string) bool { return containsAny(message, awayWords) }

func containsAny(s string, words []string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}

var (
	urlPattern     = regexp.MustCompile(`https?://[^\s"'<>]+`)
	pathPattern    = regexp.MustCompile(`(/[\w.@+~-]+)+/`)
	addressPattern = regexp.MustCompile(`\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b`)
	// wordPattern matches what may be an IPv6 address, with a zone and a port.
	wordPattern = regexp.MustCompile(`[\w:.%\[\]]+`)
)

// maxReason limits the length of a message of Nomad in a response, in characters.
const maxReason = 300

// cleanReason makes Nomad's message fit for callers: on one line, without paths of a node
// and without addresses. A URL is kept without user and query.
func cleanReason(s string) string {
	var b strings.Builder
	for {
		at := urlPattern.FindStringIndex(s)
		if at == nil {
			break
		}
		b.WriteString(hideAddresses(pathPattern.ReplaceAllString(s[:at[0]], "")))
		b.WriteString(hideAddresses(cleanURL(s[at[0]:at[1]])))
		s = s[at[1]:]
	}
	b.WriteString(hideAddresses(pathPattern.ReplaceAllString(s, "")))
	s = strings.Join(strings.Fields(b.String()), " ")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "..."
	}
	return s
}

// cleanURL removes from a URL what may be a secret.
func cleanURL(s string) string {
	scheme, rest, _ := strings.Cut(s, "://")
	rest, _, _ = strings.Cut(rest, "?")
	host, path, found := strings.Cut(rest, "/")
	if found {
		path = "/" + path
	}
	return scheme + "://" + host[strings.LastIndexByte(host, '@')+1:] + path
}

func hideAddresses(s string) string {
	s = wordPattern.ReplaceAllStringFunc(s, func(word string) string {
		bare := strings.TrimRight(word, ":.")
		if word == bare+"::" { // it ends in "::"
			bare = word
		}
		if strings.Count(bare, ":") < 2 {
			return word
		}
		_, noAddr := netip.ParseAddr(strings.Trim(bare, "[]"))
		_, noPort := netip.ParseAddrPort(bare)
		if noAddr != nil && noPort != nil {
			return word
		}
		return "(address)" + word[len(bare):]
	})
	return addressPattern.ReplaceAllString(s, "(address)")
}
