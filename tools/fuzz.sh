#!/bin/sh
# Run every fuzz target of the module for a limited time, one after another.
#
#   tools/fuzz.sh [TIME]     20s by default; TIME has the format of `go test -fuzztime`
#
# Inputs are minimized by 100 runs at most: by default that takes up to a minute for each new
# input, which for inputs of kilobytes is the whole time.
#
# It continues after a failure, so that one run shows all failures, and then exits with 1.
# Go writes the input that made a target fail into the package's testdata/fuzz: commit it.
set -eu

time=${1:-20s}
go=${GO:-go}
files=$(mktemp)
list=$(mktemp)
out=$(mktemp)
trap 'rm -f "$files" "$list" "$out"' EXIT
trap 'exit 1' HUP INT TERM

# shellcheck disable=SC2016 # the dollars are Go's
# Find the packages with targets by their source, because to link each test binary takes
# longer.
"$go" list -f '{{$p := .}}{{range .TestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}
{{end}}{{range .XTestGoFiles}}{{$p.ImportPath}} {{$p.Dir}}/{{.}}
{{end}}' ./... >"$files"
while read -r package file; do
	if [ -n "$file" ] && grep -q '^func Fuzz' "$file"; then echo "$package"; fi
done <"$files" | sort -u >"$list"

# late: succeeds if the only failure is the end of the fuzz time, which Go sometimes
# reports as one. It then writes no input.
late() {
	grep -q '^ *context deadline exceeded$' "$out" && ! grep -q 'Failing input written' "$out"
}

failed=0
while read -r package; do
	targets=$("$go" test -list '^Fuzz' "$package") || { echo "$targets"; failed=1; continue; }
	for target in $(echo "$targets" | grep '^Fuzz'); do
		echo "fuzz: $package $target $time"
		"$go" test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 100x "$package" >"$out" 2>&1 || late || failed=1
		cat "$out"
	done
done <"$list"
[ -s "$list" ] || echo "fuzz: there is no target"
exit $failed
