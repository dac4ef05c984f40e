package jobs

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/nomad/api"
	"pgregory.net/rapid"
)

// TestNote: a note changes only what it contains, and reports whether it changed anything.
func TestNote(t *testing.T) {
	job := api.NewServiceJob("j", "j", "global", 50)
	group := api.NewTaskGroup("engine", 1)
	group.Services = []*api.Service{{Name: "j"}}
	job.AddTaskGroup(group.AddTask(api.NewTask("engine", "raw_exec")))
	job.UI = &api.JobUIConfig{Links: []*api.JobUILink{{Label: "l", URL: "https://example.com"}}}
	Label(job, Engine{UserID: "u", ProductName: "acme"})
	const owner = "Engine of user `\"u\"` of product `\"acme\"`"
	for _, tc := range []struct {
		note    Note
		changes bool
		want    [3]string // mark, rest, description
	}{
		{Note{}, false, [3]string{"", "", owner}},
		{Note{Mark: "m", Shown: "running"}, true, [3]string{"m", "", owner + "\n\nState in orch: running"}},
		{Note{Mark: "m", Shown: "running"}, false, [3]string{"m", "", owner + "\n\nState in orch: running"}},
		{Note{Rest: "stopped", Shown: "stopped"}, true, [3]string{"m", "stopped", owner + "\n\nState in orch: stopped"}},
		{Note{Shown: "failed, crashed"}, true, [3]string{"m", "stopped", owner + "\n\nState in orch: failed, crashed"}},
	} {
		changed := tc.note.Write(job)
		if got := [3]string{Mark(job), Rest(job), job.UI.Description}; changed != tc.changes || got != tc.want {
			t.Errorf("%+v: changed %t, %q", tc.note, changed, got)
		}
	}
	Label(job, Engine{UserID: "v", ProductName: "acme"})
	if got := job.UI.Description; Shown(job) != "failed, crashed" || !strings.HasPrefix(got, "Engine of user `\"v\"`") || Mark(job) != "m" || Rest(job) != "stopped" || len(job.UI.Links) != 1 {
		t.Errorf("another owner: %q, %+v", got, job.UI.Links)
	}
}

// TestUserMeta: job meta names the user as the setting says.
func TestUserMeta(t *testing.T) {
	e := Engine{UserID: "a$b", ProductName: "acme"}
	for setting, want := range map[string]map[string]string{
		UserNone:  {"product": "acme"},
		UserPlain: {"product": "acme", "user": "a%24b"},
		// printf %s 'a$b' | sha256sum
		UserHashed: {"product": "acme", "user": "c7979da2f1d71a30bed66ed5c4740c1299de902bc8504283aceb7def06aa02fa"},
	} {
		meta := map[string]string{}
		Settings{UserMeta: setting}.tell(meta, e)
		if diff := cmp.Diff(want, meta); diff != "" {
			t.Errorf("%s: %s", setting, diff)
		}
	}
}

// TestMetaValue: nothing in a value of job meta is interpolated or ends a variable, and it
// can be read back.
func TestMetaValue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(anyUser, rapid.String()).Draw(t, "s")
		v := metaValue(s)
		back, err := url.PathUnescape(v)
		if err != nil || back != s || strings.ContainsAny(v, "$\x00\n\r") {
			t.Fatalf("%q becomes %q, which reads %q, %v", s, v, back, err)
		}
	})
}
