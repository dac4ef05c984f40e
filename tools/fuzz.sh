#!/bin/sh
# Run every fuzz target of the module for a while, one after the other.
#
#   tools/fuzz.sh [TIME]     20s by default; anything `go test -fuzztime` takes
#
# It goes on after a failure, so that one run shows them all, and exits 1 then.
# Go leaves what made a target fail in the package's testdata/fuzz: commit it.
set -eu

time=${1:-20s}
go=${GO:-go}
list=$(mktemp)
out=$(mktemp)
trap 'rm -f "$list" "$out"' EXIT
trap 'exit 1' HUP INT TERM

# shellcheck disable=SC2016 # the dollars are Go's
# Only packages that have targets: linking a test binary just to ask costs more.
"$go" list -f '{{$p := .}}{{range .TestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}
{{end}}{{range .XTestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}
{{end}}' ./... | while read -r package file; do
	if [ -n "$file" ] && grep -q '^func Fuzz' "$file"; then echo "$package"; fi
done | sort -u >"$list"

# Go at times reports the end of the fuzz time itself as a failure: then nothing
# but that is said, and no input is written down.
late() {
	grep -q '^ *context deadline exceeded$' "$out" && ! grep -q 'Failing input written' "$out"
}

failed=0
while read -r package; do
	targets=$("$go" test -list '^Fuzz' "$package") || { echo "$targets"; failed=1; continue; }
	for target in $(echo "$targets" | grep '^Fuzz'); do
		echo "fuzz: $package $target $time"
		"$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" >"$out" 2>&1 || late || failed=1
		cat "$out"
	done
done <"$list"
[ -s "$list" ] || echo "fuzz: there is no target"
exit $failed
