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

// AlwaysPulled says whether a node asks a registry for an image also when it has it:
// Nomad's docker driver does so for one that names neither a digest nor another tag than
// "latest", whatever force_pull says.
func AlwaysPulled(image, digest string) bool {
	return !pinned(reference(image, digest))
}

// pinned says whether an image names a fixed tag or digest.
func pinned(image string) bool {
	if strings.Contains(image, "@") {
		return true
	}
	_, tag, found := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
	return found && tag != "latest"
}
