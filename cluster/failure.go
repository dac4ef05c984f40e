package cluster

import (
	"net/netip"
	"regexp"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// Cause is what Nomad's word on a failed process is about.
type Cause string

// What a process can fail of. Empty: of itself, or Nomad does not say.
const (
	CauseImage  Cause = "image"         // it cannot be pulled, or has nothing that can be run
	CauseDriver Cause = "driver"        // the task driver could not start it: its daemon is down, a mount, a port
	CauseMemory Cause = "out_of_memory" // the kernel killed it at its memory limit
	// CauseTemplate: its node could not write a file of its secrets, as that of its key's
	// hash, and ends it for that.
	CauseTemplate Cause = "template"
)

// failure says why a task event means that the process could not start or
// ended, and what that is about. Stopping on request is no failure.
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
		// Nomad's template.go; whatever else it ends a process for is asked for.
		if e.Details["fails_task"] == "true" && strings.HasPrefix(e.DisplayMessage, "Template failed") {
			return cleanReason(e.DisplayMessage), CauseTemplate
		}
	case api.TaskTerminated:
		if outOfMemory(e) {
			return cleanReason("the process was killed at its memory limit: " + e.DisplayMessage), CauseMemory
		}
		return cleanReason("the process exited: " + e.DisplayMessage), ""
	}
	return "", ""
}

// outOfMemory says whether the kernel ended a process (SetOOMKilled in Nomad's structs;
// the docker driver says it in words, too).
func outOfMemory(e *api.TaskEvent) bool {
	return e.Details["oom_killed"] == "true" || strings.Contains(e.DisplayMessage, "OOM Killed")
}

// pulling is what the docker driver said last of a pull that is under way (pullImage and
// handleSlowPullProgressReport in its source): it says nothing when it has ended, but then
// other events follow.
func pulling(events []*api.TaskEvent) string {
	for len(events) > 0 && events[len(events)-1].Type == api.TaskKilling { // which it waits for
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

var (
	// imageWords are in what the docker driver says of a pull (coordinator.go), and in
	// what Docker, runc and the kernel say of an executable that is not there or cannot
	// be run (errno ENOENT, EACCES, ENOEXEC).
	imageWords = []string{
		"pull", "docker auth", "find image", "No such image", "manifest", "executable file not found", "no such file or directory",
		"not found under path", "permission denied", "exec format error", "no command specified",
	}
	// awayWords are in what Nomad and Docker's client say of a daemon or driver that is
	// not there.
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
	// wordPattern finds what may be an IPv6 address, with a zone and a port.
	wordPattern = regexp.MustCompile(`[\w:.%\[\]]+`)
)

// maxReason bounds what is passed on of the cluster's own words.
const maxReason = 300

// cleanReason makes the cluster's words fit for callers: no path of a node, no
// address, one line. A URL keeps its form, without a user and a query.
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

// cleanURL takes out of a URL what may be a secret.
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
		if word == bare+"::" { // it ends in one
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
