package provider

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/diag"

	"github.com/septemberai/orch/client"
)

// remedies say what to do about an error, by its code.
var remedies = map[client.Code]string{
	client.ErrInvalidAdminKey:    "Check the provider's argument admin_key, or the environment variable " + envAdminKey + ".",
	client.ErrInvalidPlatformKey: "Check the provider's argument platform_key, or the environment variable " + envPlatformKey + ". A key that was rotated is not valid any more.",
	client.ErrAdminKeyReadOnly:   "The provider needs an admin key with the role admin.",
	client.ErrTooManyWrongKeys:   "Too many calls with wrong keys came from this address. Correct the keys of the provider, and wait a minute.",
	client.ErrPolicyDenied:       "Choose an image that the product's policy allows (engine_image and allowed_images of orch_product's policy).",
	client.ErrQuotaExceeded:      "The product has as many engines as its policy allows. Raise max_engines of orch_product's policy, or destroy an engine.",
	client.ErrCapacityExhausted:  "No node has room. Add a node, or make room, and apply again.",
	client.ErrPortExhaustion:     "No node has a free port. Add a node, or make room, and apply again.",
	client.ErrBackendUnavailable: "Nothing is lost: apply again when the service has its stores back.",
	client.ErrRegistryRecovering: "Nothing is lost: apply again when the recovery has ended.",
	client.ErrOverloaded:         "Nothing is lost: apply again later.",
	client.ErrEngineBusy:         "Another operation of this engine is in progress. Apply again when it has ended, or raise the resource's timeouts.",
	client.ErrStopUnconfirmed:    "The node of the engine does not respond. The service carries the operation on when the node is back.",
}

// explain adds an error to the diagnostics in the form that all errors of the provider have:
// what failed, what the service says, what to do, and the id to look for in its log.
func explain(diags *diag.Diagnostics, what string, err error, more ...string) {
	diags.AddError(what, explanation(err, more...))
}

func explanation(err error, more ...string) string {
	paragraphs := []string{sentence(err.Error())}
	var e *client.Error
	answered := errors.As(err, &e)
	switch {
	case answered && e.Code == "":
		paragraphs[0] = fmt.Sprintf("The response (status %d) is not one of orch, but for example of a proxy in front of it. Check the provider's argument url, or %s.", e.Status, envURL)
	case answered:
		paragraphs[0] = fmt.Sprintf("%s (%s)", sentence(e.Message), e.Code)
		if remedy := remedies[e.Code]; remedy != "" && len(more) == 0 {
			paragraphs = append(paragraphs, remedy)
		}
	case errors.Is(err, context.DeadlineExceeded):
		paragraphs = append(paragraphs, "The time limit of this operation has passed: see the argument timeouts.")
	}
	paragraphs = append(paragraphs, more...)
	if answered && e.RequestID != "" {
		paragraphs = append(paragraphs, "Request id: "+e.RequestID)
	}
	return strings.Join(paragraphs, "\n\n")
}

// name matches a text that begins with the name of a field, which keeps its small letters.
var name = regexp.MustCompile(`^[a-z]+[._]`)

// sentence starts with a capital letter and ends with a full stop.
func sentence(s string) string {
	if s == "" {
		return s
	}
	if !name.MatchString(s) {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// notRefreshed says that the state was left as it is.
func notRefreshed(diags *diag.Diagnostics, what string) {
	diags.AddWarning(fmt.Sprintf("The %s was not compared with the service", what), sentence(errNotKnownYet.Error())+" The next plan compares it.")
}
