package deploy_test

import (
	"regexp"
	"strings"
	"testing"
)

// right is one capability of a policy.
type right struct {
	// name is the rule's header and the capability, as in: key_prefix "orch/" write.
	name string
	// without is the policy without it.
	without string
}

// token matches what rights looks at.
var token = regexp.MustCompile(`(\w+(?: "[^"\n]*")?)\s*\{|(\})|policy\s*=\s*"(\w+)"|capabilities\s*=\s*\[([^\]]*)\]`)

var (
	word    = regexp.MustCompile(`"([\w-]+)",?`)
	comment = regexp.MustCompile(`(?m)#.*$`)
)

// rights lists the capabilities of a policy in any of the three languages. A policy of
// "write" is the two rights to write and to read.
func rights(text string) []right {
	text = comment.ReplaceAllStringFunc(text, func(s string) string { return strings.Repeat(" ", len(s)) })
	var all []right
	var rules []string
	add := func(capability, without string) {
		rule := rules[len(rules)-1]
		if len(rules) > 1 { // path "nomad/jobs/engine-*" of variables
			rule = rules[len(rules)-2] + " " + rule
		}
		all = append(all, right{rule + " " + capability, without})
	}
	for _, m := range token.FindAllStringSubmatchIndex(text, -1) {
		part := func(i int) string {
			if m[2*i] < 0 {
				return ""
			}
			return text[m[2*i]:m[2*i+1]]
		}
		switch {
		case part(1) != "":
			rules = append(rules, part(1))
		case part(2) != "":
			rules = rules[:len(rules)-1]
		case part(3) != "":
			if part(3) == "write" {
				add("write", text[:m[6]]+"read"+text[m[7]:])
			}
			add("read", text[:m[6]]+"deny"+text[m[7]:])
		case part(4) != "":
			for _, w := range word.FindAllStringSubmatchIndex(part(4), -1) {
				left := part(4)[:w[0]] + part(4)[w[1]:]
				if !word.MatchString(left) {
					left = `"deny"`
				}
				add(part(4)[w[2]:w[3]], text[:m[8]]+left+text[m[9]:])
			}
		}
	}
	return all
}

func TestRights(t *testing.T) {
	const policy = `
# not "this" {
namespace "n" {
  capabilities = [
    "a-b", # why
    "c",
  ]
  variables {
    path "p/*" { capabilities = ["read"] }
  }
}
node { policy = "read" }
key_prefix "" {
  policy = "write"
}
`
	var got []string
	for _, r := range rights(policy) {
		got = append(got, r.name+": "+strings.Join(strings.Fields(r.without), " "))
	}
	const (
		before = `namespace "n" { capabilities = [ `
		middle = ` ] variables { path "p/*" { capabilities = [`
		after  = `] } } } node { policy = "`
	)
	want := []string{
		`namespace "n" a-b: ` + before + `"c",` + middle + `"read"` + after + `read" } key_prefix "" { policy = "write" }`,
		`namespace "n" c: ` + before + `"a-b",` + middle + `"read"` + after + `read" } key_prefix "" { policy = "write" }`,
		`variables path "p/*" read: ` + before + `"a-b", "c",` + middle + `"deny"` + after + `read" } key_prefix "" { policy = "write" }`,
		`node read: ` + before + `"a-b", "c",` + middle + `"read"` + after + `deny" } key_prefix "" { policy = "write" }`,
		`key_prefix "" write: ` + before + `"a-b", "c",` + middle + `"read"` + after + `read" } key_prefix "" { policy = "read" }`,
		`key_prefix "" read: ` + before + `"a-b", "c",` + middle + `"read"` + after + `read" } key_prefix "" { policy = "deny" }`,
	}
	if len(got) != len(want) {
		t.Fatalf("got %d rights:\n%s", len(got), strings.Join(got, "\n"))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
}
