#!/usr/bin/env bash
# Looks for known vulnerabilities that the code can reach, by govulncheck. Its database is
# built from the module golang.org/x/vulndb, which the module proxy has, once per version.
# tools/vuln.txt lists findings that cannot be mended here, one per line: id, reason.
set -euo pipefail
cd "$(dirname "$0")/.."

CHECK=golang.org/x/vuln/cmd/govulncheck@v1.9.0
DATA=golang.org/x/vulndb@v0.0.0-20261105234957-e22db6528018

db=${XDG_CACHE_HOME:-$HOME/.cache}/orch/vulndb-${DATA##*-}
if [ ! -e "$db/index/db.json" ]; then
	dir=$(go mod download -json "$DATA" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
	rm -rf "$db.new"
	go run "${DATA/@/\/cmd\/indexdb@}" -vulns "$dir/data/osv" -out "$db.new"
	mkdir -p "$db.new/ID"
	cp "$dir"/data/osv/*.json "$db.new/ID/"
	rm -rf "$db"
	mv "$db.new" "$db"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
out=$work/out
# Not "go run", which ends with 1 whatever the program ends with.
GOBIN=$work go install "$CHECK"
for module in . terraform/provider; do
	code=0
	"$work/govulncheck" -C "$module" -db "file://$db" ./... >>"$out" || code=$?
	if [ "$code" -ne 0 ] && [ "$code" -ne 3 ]; then # 3: it found something
		cat "$out" >&2
		exit "$code"
	fi
done
new=$(sed -n 's/^Vulnerability #[0-9]*: //p' "$out" | sort -u | grep -vxF -f <(cut -d' ' -f1 tools/vuln.txt) || true)
if [ -n "$new" ]; then
	cat "$out"
	printf 'not in tools/vuln.txt: %s\n' "$(tr '\n' ' ' <<<"$new")"
	exit 1
fi
printf 'no known vulnerability, but for those of tools/vuln.txt\n'
