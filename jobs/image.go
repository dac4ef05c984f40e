package jobs

import "strings"

// reference returns the image reference that a node starts: with the digest if it is known,
// so that a moved tag has no effect.
func reference(image, digest string) string {
	if digest == "" {
		return image
	}
	repository, _, _ := strings.Cut(image, "@")
	if tag := strings.LastIndexByte(repository, ':'); tag > strings.LastIndexByte(repository, '/') {
		repository = repository[:tag] // otherwise the colon precedes a registry's port
	}
	return repository + "@" + digest
}

// AlwaysPulled reports whether a node contacts a registry even if it has the image. Nomad's
// docker driver does so for an image without a digest and without a tag other than
// "latest", whatever force_pull is.
func AlwaysPulled(image, digest string) bool {
	return !pinned(reference(image, digest))
}

// pinned reports whether an image names a digest or a tag other than latest.
func pinned(image string) bool {
	if strings.Contains(image, "@") {
		return true
	}
	_, tag, found := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
	return found && tag != "latest"
}
