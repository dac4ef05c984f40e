#!/bin/sh
# Build the image of the worker of snapshots.
#
#   build-image.sh [TAG]         default: orch/orch-brain:1
#
# The image is built by the Docker Engine at DOCKER_HOST, and nothing is downloaded. GOARCH
# selects another architecture. With ORCH_BRAIN, a static executable, nothing is compiled.
# `make engine-image` calls this script.
set -eu

here=$(cd "$(dirname "$0")" && pwd -P)
tag=${1:-orch/orch-brain:1}

command -v docker >/dev/null 2>&1 || { echo "build-image.sh: there is no docker command" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

if [ -n "${ORCH_BRAIN:-}" ]; then
	cp "$ORCH_BRAIN" "$tmp/orch-brain"
else
	(cd "$here" && GOOS=linux CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' \
		-o "$tmp/orch-brain" .)
fi
chmod 0755 "$tmp/orch-brain"
cp "$here/Dockerfile" "$tmp/Dockerfile"
# As for the reference engine's image: the classic builder, or else a tar.
if ! DOCKER_BUILDKIT=0 docker build -q -t "$tag" "$tmp" >"$tmp/build.log" 2>&1; then
	sed 's/^/build-image.sh: docker build: /' "$tmp/build.log" >&2
	tar -C "$tmp" --owner=0 --group=0 -cf - orch-brain |
		docker import --change "USER 65532:65532" --change 'ENTRYPOINT ["/orch-brain"]' - "$tag" >/dev/null
fi
echo "$tag"
