package jobs

import "strings"

// reference is what a node is to start: the image by its digest, where that is
// known, whatever its tag means by then.
func reference(image, digest string) string {
	if digest == "" {
		return image
	}
	repository, _, _ := strings.Cut(image, "@")
	if tag := strings.LastIndexByte(repository, ':'); tag > strings.LastIndexByte(repository, '/') {
		repository = repository[:tag] // else it is the port of a registry
	}
	return repository + "@" + digest
}

// pinned says whether an image names a fixed tag or digest, so that a node that
// has it need not ask a registry.
func pinned(image string) bool {
	if strings.Contains(image, "@") {
		return true
	}
	_, tag, found := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
	return found && tag != "latest"
}
