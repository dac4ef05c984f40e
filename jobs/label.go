package jobs

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/nomad/api"
)

// Label writes the engine's owner into a job, in two places that can change without a
// restart of its process. It keeps what else is there.
func Label(job *api.Job, e Engine) {
	owner := fmt.Sprintf("Engine of user %s of product %s", quoteForUI(e.UserID), quoteForUI(e.ProductName))
	if e.Warm != "" {
		owner = fmt.Sprintf("Warm, unclaimed engine of image %s, kind %s: it runs and waits for a user", quoteForUI(e.Image), quoteForUI(e.Warm))
	}
	describe(job, owner, Shown(job))
	mark, image, scheme, rest := Mark(job), serviceMeta(job, imageKey), serviceMeta(job, schemeKey), Rest(job)
	engineServices(job)[0].Meta = map[string]string{
		"engine_id":  e.EngineID,
		"product_id": e.ProductID,
		// Nomad interpolates service meta; the encoding prevents that for a user_id.
		"user_id_b64": base64.RawURLEncoding.EncodeToString([]byte(e.UserID)),
		keyChecksum:   "${" + keyChecksumVariable + "}",
	}
	setServiceMeta(job, markKey, mark)
	setServiceMeta(job, imageKey, image)
	setServiceMeta(job, schemeKey, scheme)
	setServiceMeta(job, restKey, rest)
}

// markKey is the service meta with the id of the operation that wrote the job last. It
// changes in place, and every change of it increases the job's index.
const markKey = "operation"

// Mark returns the id of the operation that wrote a job last; empty: no operation did.
func Mark(job *api.Job) string { return serviceMeta(job, markKey) }

// restKey is the service meta that says why a job requests no process.
const restKey = "rest"

// Rest returns the state of an engine whose job requests no process ("stopped",
// "sleeping"); empty: not recorded.
func Rest(job *api.Job) string { return serviceMeta(job, restKey) }

// Note is what an operation writes into a job beside its count. Empty fields change
// nothing.
type Note struct {
	Mark string // see Mark
	// Rest is the engine's state while its job requests no process (see Rest). A rendered
	// job requests one and records no state.
	Rest string
	// Shown is the engine's state for people who look at the job in Nomad's UI.
	Shown string
}

// Write writes the note and reports whether it changed the job.
func (n Note) Write(job *api.Job) (changed bool) {
	for key, value := range map[string]string{markKey: n.Mark, restKey: n.Rest} {
		changed = changed || value != "" && serviceMeta(job, key) != value
		setServiceMeta(job, key, value)
	}
	if n.Shown != "" && n.Shown != Shown(job) {
		owner := ""
		if job.UI != nil {
			owner, _, _ = strings.Cut(job.UI.Description, stateHeading)
		}
		describe(job, owner, n.Shown)
		return true
	}
	return changed
}

// stateHeading is between the owner and the state in the description of a job.
const stateHeading = "\n\nState in orch: "

// Shown returns the state that Note.Shown wrote into a job; empty: none.
func Shown(job *api.Job) string {
	if job.UI == nil {
		return ""
	}
	_, state, _ := strings.Cut(job.UI.Description, stateHeading)
	return state
}

// describe writes the description that Nomad's UI shows, and keeps the job's links.
func describe(job *api.Job, owner, state string) {
	if job.UI == nil {
		job.UI = new(api.JobUIConfig)
	}
	job.UI.Description = owner
	if state != "" {
		job.UI.Description += stateHeading + state
	}
}

// maxShown limits the length of a string in Nomad's UI, in bytes. Two of them, a state and
// the words around stay below Nomad's limit of 1000 bytes (structs.Job.Validate).
const maxShown = 440

// quoteForUI quotes a string so that Nomad's UI, which renders Markdown and turns what looks
// like an address into a link, shows it literally: as code. Printable characters of all
// languages stay as they are; backquotes, "<", ">" and "$", and every invisible character,
// become a Go escape. A long string is shortened and marked as such.
func quoteForUI(s string) string {
	var b strings.Builder
	b.WriteString("`\"")
	for _, r := range s {
		shown := strconv.Quote(string(r))
		shown = shown[1 : len(shown)-1]
		if strings.ContainsRune("`<>$", r) {
			shown = fmt.Sprintf(`\x%02x`, r)
		}
		if b.Len()+len(shown) > maxShown-len(cut) {
			return b.String() + cut
		}
		b.WriteString(shown)
	}
	return b.String() + "\"`"
}

const cut = "\"`..."
