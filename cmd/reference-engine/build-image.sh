#!/bin/sh
# Build the reference engine's image, and variants of it for tests.
#
#   build-image.sh                       the standard set
#   build-image.sh TAG[=SWITCH,...] ...  these tags, with these switches in the ENTRYPOINT
#
#   build-image.sh orch/reference-engine:1 orch/reference-engine:slow=slow-boot-2s,v2
#
# `reference-engine -help` lists the switches. The images are built by the Docker Engine
# at DOCKER_HOST, and nothing is downloaded. GOARCH selects another architecture. With
# REFERENCE_ENGINE, a static executable, nothing is compiled.
# `make engine-image` calls this script.
set -eu

here=$(cd "$(dirname "$0")" && pwd -P)
repo=orch/reference-engine

if [ $# -eq 0 ]; then
	set -- "$repo:1"
	for switch in v2 exit-at-start slow-boot-2s slow-boot-30s never-listen hang fail-health fail-health-file \
		crash-after-3s eat-memory eat-memory-10s busy ignore-sigterm term-delay-5s linger-3s reload no-reload; do
		set -- "$@" "$repo:$switch=$switch"
	done
fi

command -v docker >/dev/null 2>&1 || { echo "build-image.sh: there is no docker command" >&2; exit 1; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

if [ -n "${REFERENCE_ENGINE:-}" ]; then
	cp "$REFERENCE_ENGINE" "$tmp/reference-engine"
else
	(cd "$here" && GOOS=linux CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' \
		-o "$tmp/reference-engine" .)
fi
chmod 0755 "$tmp/reference-engine"

# entrypoint SWITCH,...: the ENTRYPOINT as a JSON list.
entrypoint() {
	printf '["/reference-engine"'
	for s in $(echo "$1" | tr ',' ' '); do
		case $s in *[!A-Za-z0-9.=-]*) echo "build-image.sh: invalid switch $s" >&2; exit 1 ;; esac
		printf ',"%s"' "$s"
	done
	printf ']'
}

for arg; do
	tag=${arg%%=*}
	switches=
	[ "$tag" = "$arg" ] || switches=${arg#*=}
	entry=$(entrypoint "$switches")
	sed "s|^ENTRYPOINT .*|ENTRYPOINT $entry|" "$here/Dockerfile" >"$tmp/Dockerfile"
	# Use the classic builder, because BuildKit would have to be downloaded. If the CLI no
	# longer has it, or the engine refuses, use `docker import`, which needs only a tar.
	if DOCKER_BUILDKIT=0 docker build -q -t "$tag" "$tmp" >"$tmp/build.log" 2>&1; then
		:
	else
		sed 's/^/build-image.sh: docker build: /' "$tmp/build.log" >&2
		tar -C "$tmp" --owner=0 --group=0 -cf - reference-engine |
			docker import --change "USER 65532:65532" --change "EXPOSE 8000" \
				--change "ENTRYPOINT $entry" - "$tag" >/dev/null
	fi
	echo "$tag $entry"
done
