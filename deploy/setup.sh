# shellcheck shell=bash
# Functions that install what a bare Debian 12 needs to build orch and to run its tests.
# .ci/run and the scripts in deploy/vagrant/ source this file with bash.

# The version of Go that is installed if there is none, or one older than in go.mod.
GO_VERSION=1.26.8

# The versions of Node and npm that are installed if there is no Node, or one older than 20.
NODE_VERSION=20.20.2
NPM_VERSION=10.9.4

# setup_packages NAME...: install the Debian packages that are missing.
setup_packages() {
	local name missing=()
	for name; do
		dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
	done
	[ ${#missing[@]} -gt 0 ] || return 0
	if [ "$(id -u)" != 0 ]; then
		echo "these packages are missing, and only root can install them (apt-get install): ${missing[*]}" >&2
		return 1
	fi
	echo "installing ${missing[*]}" >&2
	setup_lists && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# setup_lists: update the lists of packages, only once.
setup_lists() {
	[ -z "${setup_lists_done:-}" ] || return 0
	apt-get update -qq >&2
	setup_lists_done=1
}

# setup_offers NAME: succeeds if Debian has this package.
setup_offers() {
	dpkg-query -W "$1" >/dev/null 2>&1 || setup_lists || return
	apt-cache policy "$1" | grep -q '^  Candidate: [0-9]'
}

# setup_go ROOT: install a Go that can build the checkout in ROOT. Debian 12 has Go 1.19,
# which is too old to build orch and to switch to a newer toolchain. But it can download the
# toolchain as a module, and verifies its checksum.
setup_go() {
	local root=$1 want have fetched dir=/usr/local/lib/go-$GO_VERSION
	want=$(awk '$1 == "go" {print $2}' "$root/go.mod")
	if command -v go >/dev/null; then
		have=$(cd / && GOTOOLCHAIN=local go env GOVERSION)
		have=${have#go}
		[ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" != "$want" ] || return 0
	fi
	if [ ! -x "$dir/bin/go" ]; then
		setup_packages golang-go ca-certificates
		echo "installing Go $GO_VERSION" >&2
		fetched=$(cd / && GOTOOLCHAIN=local go mod download -json \
			"golang.org/toolchain@v0.0.1-go$GO_VERSION.linux-$(dpkg --print-architecture)" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
		rm -rf "$dir.new"
		cp -r "$fetched" "$dir.new"
		chmod -R u+w "$dir.new"
		# Files of a module are not executable.
		find "$dir.new/bin" "$dir.new/pkg/tool" -type f -exec chmod 0755 {} +
		mv "$dir.new" "$dir"
	fi
	ln -sf "$dir/bin/go" "$dir/bin/gofmt" /usr/local/bin/
	export PATH=/usr/local/bin:$PATH
	hash -r
	go version >&2
}

# setup_node: install a Node and npm that can run the tools in tools/openapi. Debian 12 has
# Node 18, which is too old, but its npm can install a newer Node and npm as packages: npm
# of Debian itself runs only with Debian's Node.
setup_node() {
	local arch dir=/usr/local/lib/node-$NODE_VERSION
	if command -v node >/dev/null && command -v npm >/dev/null &&
		[ "$(printf '%s\n' v20 "$(node --version)" | sort -V | head -n 1)" = v20 ]; then
		return 0
	fi
	case $(dpkg --print-architecture) in
	arm64) arch=arm64 ;;
	*) arch=x64 ;;
	esac
	if [ ! -x "$dir/bin/node" ]; then
		setup_packages ca-certificates nodejs npm
		echo "installing Node $NODE_VERSION" >&2
		rm -rf "$dir.new"
		mkdir -p "$dir.new/bin"
		npm install --prefix "$dir.new" --no-save --no-audit --no-fund --ignore-scripts "node-linux-$arch@$NODE_VERSION" "npm@$NPM_VERSION" >&2
		ln -s "../node_modules/node-linux-$arch/bin/node" "$dir.new/bin/node"
		ln -s ../node_modules/npm/bin/npm-cli.js "$dir.new/bin/npm"
		ln -s ../node_modules/npm/bin/npx-cli.js "$dir.new/bin/npx"
		mv "$dir.new" "$dir"
	fi
	ln -sf "$dir/bin/node" "$dir/bin/npm" "$dir/bin/npx" /usr/local/bin/
	export PATH=/usr/local/bin:$PATH
	hash -r
	node --version >&2
}

# setup_build ROOT: install what the build and the tests need. The race detector needs the
# C compiler.
setup_build() {
	setup_packages ca-certificates curl gcc git libc6-dev make procps
	setup_go "$1"
}
